"""One's own structures: files and Atoms become the molecule that they show, atom by atom; damage is one sentence."""

from dataclasses import replace

import ase
import ase.io
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from rdkit import Chem
from rdkit.Chem import AllChem, rdForceFieldHelpers

import kstep
from kstep.cli import main
from kstep.errors import UserError
from kstep.forces.openmm import OpenMMPhysics
from kstep.forces.tblite import QMConfig
from kstep.molecules.molecule import Molecule
from kstep.molecules.prepare import prepare_structure, system_xml_for, system_xml_of
from kstep.molecules.smiles import rdkit_of
from kstep.molecules.structure_file import READERS, read_structure, structure_of
from kstep.runs.starts import surface_of
from kstep.schemas import load_trajectory
from kstep.stages.physics import open_physics
from kstep.training.labels import Labels
from kstep.units import KJ_PER_KCAL

KINDS = ("xyz", "extxyz", "sdf", "mol", "pdb")
CHIRAL = "C[C@H](O)CF"
WATER = "3\n{comment}\nO 0 0 0.117\nH 0 0.757 -0.469\nH 0 -0.757 -0.469\n"


def shuffled(smiles, n=3, seed=0):
    """RDKit molecule with n conformers, its atoms in random order."""
    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    AllChem.EmbedMultipleConfs(molecule, n, randomSeed=seed + 1)
    order = np.random.default_rng(seed).permutation(molecule.GetNumAtoms())
    return Chem.RenumberAtoms(molecule, order.tolist())


def frames_of(molecule, **info):
    numbers = [atom.GetAtomicNum() for atom in molecule.GetAtoms()]
    return [ase.Atoms(numbers, conformer.GetPositions(), info=info) for conformer in molecule.GetConformers()]


def write(path, molecule, **info):
    """The file of a kind, as other programs write it."""
    if path.suffix in (".xyz", ".extxyz"):
        ase.io.write(path, frames_of(molecule, **info), format="extxyz" if info else path.suffix[1:])
    elif path.suffix == ".pdb":
        path.write_text(Chem.MolToPDBBlock(molecule))
    elif path.suffix == ".mol":
        path.write_text(Chem.MolToMolBlock(molecule, confId=0))
    else:
        with Chem.SDWriter(str(path)) as writer:
            for conformer in molecule.GetConformers():
                writer.write(molecule, confId=conformer.GetId())
    return path


def opened(path, **given):
    return prepare_structure(read_structure(path, **given))


@pytest.mark.parametrize("kind", KINDS)
def test_atoms_geometries_and_stereochemistry_are_those_of_the_file(tmp_path, kind):
    source = shuffled(CHIRAL)
    molecule = opened(write(tmp_path / f"mine.{kind}", source)).molecule
    assert molecule.name == "mine" and molecule.numbers.tolist() == [a.GetAtomicNum() for a in source.GetAtoms()]
    assert Chem.CanonSmiles(molecule.smiles) == Chem.CanonSmiles(CHIRAL) != Chem.CanonSmiles("C[C@@H](O)CF")
    assert {tuple(pair) for pair in molecule.bonds} == {
        tuple(sorted((b.GetBeginAtomIdx(), b.GetEndAtomIdx()))) for b in source.GetBonds()}
    assert len(molecule.conformers) == (1 if kind == "mol" else 3)
    centre = molecule.masses / molecule.masses.sum()
    for n, (found, conformer) in enumerate(zip(molecule.conformers, source.GetConformers())):
        given = 0.1 * conformer.GetPositions()
        apart = np.linalg.norm(found[:, None] - (given - centre @ given), axis=2)
        order = apart.argmin(axis=1)  # equivalent atoms of later ones are numbered as in the first
        assert apart.min(axis=1).max() < 2e-4  # pdb has three digits
        assert sorted(order) == list(range(len(molecule))) and (n or (order == np.arange(len(molecule))).all())
        assert (molecule.numbers[order] == molecule.numbers).all()
        assert np.abs(molecule.masses @ found).max() < 1e-9
    species = molecule.species()
    assert len(species.stereo.centres) == 1
    assert species.inside(molecule.conformers).all() and not species.inside(-molecule.conformers).any()


@pytest.mark.parametrize("smiles", [
    "C[C@@H](O)[C@H](Cl)Br", "C[C@H](O)[C@@H](C)O", "C1C[C@@H]2CC[C@H]1C2", "C/C=C/[C@@H](N)C(=O)O", "N/N=C/C",
    "[H]/N=C(/C)O", "C[S@](=O)CC", "CC(=O)[O-]", "C[N+](C)(C)CC(=O)[O-]", "O=[N+]([O-])c1ccccc1",
    "CN(C)c1ccc(cc1)[N+](=O)[O-]", "O=S=O", "CP(=O)(O)O", "[C-]#[O+]", "N#[N+][O-]", "c1cc[nH]c1", "O=C=O", "[H][H]",
    "CC(=O)N[C@@H](C)C(=O)NC", "F[Xe]F", "[Na+]"])
def test_bonds_of_bare_geometries_are_perceived(tmp_path, smiles):
    """In two orders of the atoms, also where RDKit's search fails in some; named stereochemistry holds by its walls."""
    for seed in (0, 1):
        source = shuffled(smiles, n=1, seed=seed)
        path = write(tmp_path / "mine.xyz", source)
        molecule = opened(path, charge=Chem.GetFormalCharge(source)).molecule
        assert molecule.numbers.tolist() == [atom.GetAtomicNum() for atom in source.GetAtoms()]
        assert Chem.CanonSmiles(molecule.smiles) == Chem.CanonSmiles(smiles)
        assert molecule.species().inside(molecule.conformers).all()


def test_the_force_field_is_built_for_the_atoms_as_they_stand(tmp_path):
    source = shuffled("CC(=O)NC", n=2)
    prepared = opened(write(tmp_path / "mine.sdf", source))
    molecule = prepared.molecule
    typed = Chem.Mol(source)
    expected = [rdForceFieldHelpers.MMFFGetMoleculeForceField(
        typed, rdForceFieldHelpers.MMFFGetMoleculeProperties(typed), confId=n).CalcEnergy() * KJ_PER_KCAL
        for n in (0, 1)]
    for xml in (system_xml_of(prepared), system_xml_for(molecule)):
        physics = OpenMMPhysics(molecule.numbers, molecule.masses, system_xml=xml)
        assert [physics.energy(x) for x in molecule.conformers] == pytest.approx(expected, abs=2e-2)


def test_a_prepared_molecule_keeps_its_order_through_its_file(tmp_path):
    molecule = opened(write(tmp_path / "mine.xyz", shuffled(CHIRAL))).molecule
    molecule.save(tmp_path / "molecule.npz")
    again = Molecule.load(tmp_path)
    assert np.array_equal(again.smiles_order, molecule.smiles_order)
    assert [a.GetAtomicNum() for a in rdkit_of(again).GetAtoms()] == molecule.numbers.tolist()
    assert again.species().inside(again.conformers).all() and len(again.species().stereo.centres) == 1
    with np.load(tmp_path / "molecule.npz") as archive:
        arrays = dict(archive)
    np.savez(tmp_path / "molecule.npz", **{**arrays, "smiles_order": arrays["smiles_order"] * 0})
    with pytest.raises(UserError, match="smiles_order"):
        Molecule.load(tmp_path)


# charge, multiplicity, isotopes

@pytest.mark.parametrize("comment, charge", [
    ("charge=1", 1), ("Energy = -5.3 charge = 1", 1), ("charge: +1, multiplicity: 1", 1),
    ('Properties=species:S:1:pos:R:3 charge=1 pbc="F F F"', 1)])
def test_a_comment_line_states_the_charge(tmp_path, comment, charge):
    source = shuffled("C[NH3+]", n=1)
    write(tmp_path / "mine.xyz", source)
    lines = (tmp_path / "mine.xyz").read_text().splitlines()
    (tmp_path / "mine.xyz").write_text("\n".join([lines[0], comment, *lines[2:]]) + "\n")
    assert opened(tmp_path / "mine.xyz").molecule.charge == charge
    with pytest.raises(UserError, match=r"charge 0 contradicts .*mine.xyz, which states charge 1"):
        read_structure(tmp_path / "mine.xyz", charge=0)


@pytest.mark.parametrize("kind", ["sdf", "mol", "pdb"])
def test_charges_of_sdf_and_pdb_are_read(tmp_path, kind):
    path = write(tmp_path / f"mine.{kind}", shuffled("CC(=O)[O-]", n=1))
    assert opened(path).molecule.charge == -1
    with pytest.raises(UserError, match="contradicts"):
        read_structure(path, charge=1)


def test_atoms_say_charge_and_spin_in_both_ways():
    (frame,) = frames_of(shuffled("C[NH3+]", n=1))
    for change in ({"info": {"charge": 1, "spin": 3}}, {"charges": [1 / 8] * 8, "magmoms": [2 / 8] * 8}):
        atoms = ase.Atoms(frame.numbers, frame.positions, **change)
        molecule = prepare_structure(structure_of(atoms)).molecule
        assert (molecule.charge, molecule.multiplicity) == (1, 3)
    with pytest.raises(UserError, match="no whole number"):
        structure_of(ase.Atoms(frame.numbers, frame.positions, charges=[0.05] * 8))


def test_a_radical_is_a_doublet_with_a_word_and_o2_a_singlet_with_one(tmp_path, caplog):
    source = Chem.AddHs(Chem.MolFromSmiles("C[CH2]"))
    AllChem.EmbedMolecule(source, randomSeed=1)
    assert opened(write(tmp_path / "ethyl.xyz", source)).molecule.multiplicity == 2
    assert "leave 1 unpaired electron, so its multiplicity is taken as 2" in caplog.text
    caplog.clear()
    assert opened(tmp_path / "ethyl.xyz", multiplicity=4).molecule.multiplicity == 4
    for name, numbers in (("O2", [8, 8]), ("SO", [16, 8])):
        atoms = ase.Atoms(numbers, [[0, 0, 0], [0, 0, 1.3]])
        open_physics(atoms, QMConfig()).check()
        assert [r.getMessage() for r in caplog.records if "ground state is a triplet" in r.getMessage()], name
        caplog.clear()
    open_physics("O=O", QMConfig(), multiplicity=3).check()
    open_physics("O=O", QMConfig(spin_multiplicity=3)).check()
    open_physics("N#N", QMConfig()).check()
    assert not caplog.records
    open_physics("O=O", QMConfig()).check()
    assert len(caplog.records) == 1


def test_isotopes_of_the_file_count(tmp_path):
    source = shuffled("[2H]C([2H])([2H])O", n=2)
    heavy = [n for n, atom in enumerate(source.GetAtoms()) if atom.GetIsotope() == 2]
    write(tmp_path / "d.sdf", source)
    write(tmp_path / "d.xyz", source)
    lines = (tmp_path / "d.xyz").read_text().splitlines()
    for start in (2, 2 + len(source.GetAtoms()) + 2):
        for n in heavy:
            lines[start + n] = lines[start + n].replace("H", "D", 1)
    (tmp_path / "d.xyz").write_text("\n".join(lines))
    frames = frames_of(source)
    for frame in frames:
        masses = frame.get_masses()
        masses[heavy] = 2.014
        frame.set_masses(masses)
    ase.io.write(tmp_path / "d.extxyz", frames)
    for found in (opened(tmp_path / "d.sdf"), opened(tmp_path / "d.xyz"), opened(tmp_path / "d.extxyz"),
                  prepare_structure(structure_of(frames)), opened(tmp_path / "d.xyz", smiles="CO")):
        assert found.molecule.masses[heavy] == pytest.approx(2.014, abs=2e-3)
        assert np.delete(found.molecule.masses, heavy).max() < 16.1 and found.molecule.smiles == "[2H]C([2H])([2H])O"
    plain = write(tmp_path / "h.xyz", source)
    assert opened(plain).molecule.smiles == "CO"
    assert opened(plain, smiles="[2H]C([2H])([2H])O").molecule.masses.max() < 16.1
    with pytest.raises(UserError, match="isotopes are others"):
        opened(tmp_path / "d.extxyz", smiles="COO"[:2] + "[2H]")


def test_a_smiles_beside_the_file_says_the_bonds(tmp_path):
    octahedron = 1.6 * np.concatenate([np.eye(3), -np.eye(3)])
    ase.io.write(tmp_path / "pf6.xyz", ase.Atoms("F3PF3", np.insert(octahedron, 3, 0.0, axis=0)), format="xyz")
    with pytest.raises(UserError, match="give the right --charge, an sdf file"):
        read_structure(tmp_path / "pf6.xyz", charge=-1)
    molecule = opened(tmp_path / "pf6.xyz", smiles="F[P-](F)(F)(F)(F)F").molecule
    assert molecule.numbers.tolist() == [9, 9, 9, 15, 9, 9, 9] and molecule.charge == -1
    assert molecule.species().inside(molecule.conformers).all()
    path = write(tmp_path / "mine.xyz", shuffled(CHIRAL))
    assert opened(path, smiles="CC(O)CF").molecule.smiles == Chem.CanonSmiles(CHIRAL)  # open centres are the file's
    for smiles, words in (("C[C@@H](O)CF", "stereochemistry"), ("CCCO", "atoms or bonds"),
                          ("OCC(C)F", "atoms or bonds")):
        with pytest.raises(UserError, match=f"is no geometry of .*{words}"):
            opened(path, smiles=smiles)


# what is damaged, or contradicts itself

DAMAGE = {
    "empty.xyz": ("", "holds no atoms"),
    "count.xyz": ("x\n\nO 0 0 0\n", "'x' is not the number"),
    "square.xyz": ("\u00b2\n\nH 0 0 0\nH 0 0 0.74\n", "is not the number"),
    "digits.xyz": ("9" * 5000 + "\n\nH 0 0 0\n", "is not the number"),
    "short.xyz": ("3\n\nO 0 0 0\n", "is not the number of the atoms that follow"),
    "long.xyz": (WATER.format(comment="") + "H 1 1 1\n", "frame 2 (line 6)"),
    "words.xyz": ("2\n\nO 0 0 0\nH 0 0\n", "cannot be read"),
    "element.xyz": ("2\n\nO 0 0 0\nQq 0 0 1\n", "cannot be read"),
    "nan.xyz": ("2\n\nO 0 0 nan\nH 0 0 1\n", "NaN"),
    "nm.xyz": ("2\n\nH 0 0 0\nH 0 0 0.074\n", "must be in angstrom"),
    "bohr.xyz": (WATER.format(comment="").replace("0.757", "1.9").replace("0.469", "1.2"), "no bond connects"),
    "two.xyz": ("6\n\n" + "".join(WATER.split("\n", 2)[2] for _ in "1")
                + "O 0 0 9.117\nH 0 0.757 8.531\nH 0 -0.757 8.531\n", "2 molecules that no bond connects"),
    "charge.xyz": (WATER.format(comment="charge=0.5"), "no whole number"),
    "cell.extxyz": (WATER.format(comment='Lattice="9 0 0 0 9 0 0 0 9"'), "is periodic"),
    "cation.xyz": ("5\n\nN 0 0 0\nH .59 .59 .59\nH -.59 -.59 .59\nH -.59 .59 -.59\nH .59 -.59 -.59\n",
                   "give the right --charge"),
    "bare.xyz": ("2\n\nC 0 0 0\nC 0 0 1.54\n", "no bonds between its atoms"),
    "other.xyz": (WATER.format(comment="") + WATER.format(comment="").replace("O", "S"), "frame 2 has other atoms"),
    "order.xyz": (WATER.format(comment="") + "3\n\nH 0 0.757 -0.469\nO 0 0 0.117\nH 0 -0.757 -0.469\n",
                  "the same in another order"),
    "broken.xyz": (WATER.format(comment="") + WATER.format(comment="").replace("H 0 0.757", "H 0 2.757"),
                   "geometry 2 is another molecule than the first"),
    "states.xyz": (WATER.format(comment="charge=0") + WATER.format(comment="charge=1"), "frame 2 states another"),
    "bytes.xyz": (b"\xff\xfe3", "not UTF-8"),
    "empty.sdf": ("", "holds no molecule"),
    "text.sdf": ("this is\nno\nsdf\n", "record 1 is damaged"),
    "empty.pdb": ("", "has no atoms"),
    "text.pdb": ("ATOM  what\n", "PDB"),
    "empty.mol": ("\n\n\n", "damaged"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_one_sentence_that_names_it(tmp_path, name, capsys):
    content, words = DAMAGE[name]
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main(["prepare", "--structure", str(path), "--out-dir", str(tmp_path / "raw")]) == 2
    err = capsys.readouterr().err
    assert words in err and name in err and err.startswith("error: ") and err.count("\n") == 1
    assert "delete" not in err and path.exists() and not (tmp_path / "raw" / path.stem).exists()


def test_the_mark_that_windows_begins_a_file_with_is_no_part_of_it(tmp_path):
    (tmp_path / "marked.xyz").write_bytes(b"\xef\xbb\xbf" + WATER.format(comment="charge=0").encode())
    assert read_structure(tmp_path / "marked.xyz").rdkit.GetNumAtoms() == 3


def without(molecule, kind):
    """A copy with one hydrogen on carbon less, or drawn in the plane."""
    if kind == "hydrogens":
        return Chem.RemoveHs(molecule)
    flat = Chem.Mol(molecule)
    flat.RemoveAllConformers()
    AllChem.Compute2DCoords(flat)
    return flat


@pytest.mark.parametrize("kind, words", [("hydrogens", "lacks 7 hydrogens"), ("depth", "a drawing in the plane")])
def test_a_drawing_is_no_structure(tmp_path, kind, words):
    path = write(tmp_path / "mine.mol", without(shuffled(CHIRAL, n=1), kind))
    with pytest.raises(UserError, match=words):
        read_structure(path)


def test_records_and_models_are_one_molecule(tmp_path):
    one, other = shuffled(CHIRAL, n=1), shuffled("C[C@@H](O)CF", n=1)
    for kind, words in (("sdf", "geometry 2 is another molecule"), ("xyz", r"the stereocentre C\d+ is turned over")):
        paths = [write(tmp_path / f"{n}.{kind}", molecule) for n, molecule in enumerate((one, other))]
        both = tmp_path / f"both.{kind}"
        both.write_text("".join(path.read_text() for path in paths))
        with pytest.raises(UserError, match=words):
            opened(both)
    model = write(tmp_path / "one.pdb", one).read_text().split("CONECT")[0]
    (tmp_path / "both.pdb").write_text(f"MODEL 1\n{model}ENDMDL\nMODEL 2\n{model.split(chr(10), 1)[1]}ENDMDL\nEND\n")
    with pytest.raises(UserError, match="its models have 12, 11 atoms"):
        read_structure(tmp_path / "both.pdb")


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_in_a_file_it_is_read_or_refused(tmp_path, kind, data):
    """Characters replaced, and the end cut off, anywhere: a molecule or a UserError, and nothing else."""
    text = list(write(tmp_path / f"whole.{kind}", shuffled("CO", n=2)).read_text())
    for place in data.draw(st.lists(st.integers(0, len(text) - 1), max_size=4)):
        text[place] = data.draw(st.sampled_from(list("0917 .-+eEHXDnaM\n\t*\u00e9")))
    path = tmp_path / f"damaged.{kind}"
    path.write_text("".join(text[: data.draw(st.integers(0, len(text)))]), encoding="utf-8")
    molecule = read_or_refused(path)
    assert molecule is None or molecule.species().inside(molecule.conformers).all()


def read_or_refused(path):
    """Its molecule, or None where it is refused; any other error is the test's."""
    try:
        return opened(path).molecule
    except UserError:
        return None


@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_molecule_is_said(text):
    with pytest.raises(UserError, match="the molecule is empty; give a SMILES"):
        open_physics(text, QMConfig())


@pytest.mark.parametrize("words, answer", [
    (["sample", "--scheme", "plain", "--out", "x.npz"], "say which molecule"),
    (["sample", "w.xyz", "--structure", "w.xyz", "--scheme", "plain", "--out", "x.npz"], "both structure files"),
    (["sample", "none.xyz", "--scheme", "plain", "--out", "x.npz"], "structure file none.xyz does not exist"),
    (["sample", "--structure", "w.mol2", "--scheme", "plain", "--out", "x.npz"], "did you mean '.mol'"),
    (["sample", "CO", "--structure", "w.xyz", "--scheme", "plain", "--out", "x.npz"], "is no geometry of 'CO'"),
    (["sample", "w.xyz", "--charge", "1", "--scheme", "plain", "--out", "x.npz"], "states charge 0"),
    (["sample", "w.xyz", "--multiplicity", "2", "--scheme", "plain", "--out", "x.npz"], "must be odd"),
    (["sample", "O", "--charge", "1", "--scheme", "plain", "--out", "x.npz"], "contradicts SMILES 'O'"),
    (["sample", "O", "--charge", "one", "--scheme", "plain", "--out", "x.npz"], "--charge"),
    (["sample", "O", "--temperature", "-3", "--scheme", "plain", "--out", "x.npz"], "number > 0"),
    (["sample", "O", "--temperature", "20000", "--scheme", "plain", "--out", "x.npz"], "temperature_K"),
    (["sample", "raw/w", "--charge", "1", "--scheme", "plain", "--out", "x.npz"], "which has charge 0"),
    (["sample", "raw/w", "--multiplicity", "3", "--scheme", "plain", "--out", "x.npz"], "which has multiplicity 1"),
    (["sample", "raw/w", "--structure", "w.xyz", "--scheme", "plain", "--out", "x.npz"], "geometries of its own"),
    (["sample", "raw/w", "--name", "x", "--scheme", "plain", "--out", "x.npz"], "has a name already"),
    (["sample", "O", "--charge", "0", "--config", "cation.yaml", "--scheme", "plain", "--out", "x.npz"],
     "contradicts the config's charge: 1"),
    (["sample", "[NH3+]CC[NH3+]", "--config", "neutral.yaml", "--scheme", "plain", "--out", "x.npz"],
     "charge: 0 of the config contradicts C2H10N2_2, whose own is +2"),
    (["qmmm", "--smiles", "[NH3+]CC[NH3+]", "--qm-config", "neutral.yaml", "--waters", "1", "--out", "x.npz"],
     "contradicts the QM region, whose formal charges add up to +2"),
    (["sample", "CCO", "--restrain", "distance:0-77:0.2:10", "--learn", "--out", "x.npz"],
     "names atom 77, but the molecule has atoms 0 to 8"),
    (["populations", "x.npz", "--smallest", "2"], "above 0 and up to 1"),
    (["populations", "x.npz", "--config", "neutral.yaml"], "which is not asked for"),
    (["advise"], "say which molecule"), (["benchmark", "--out-dir", "b"], "say which molecule"),
    (["advise", "--structure", "w.mol2"], "did you mean '.mol'"),
    (["benchmark", "--structure", "none.xyz", "--out-dir", "b"], "structure file none.xyz does not exist"),
    (["advise", "raw/w", "--structure", "w.xyz"], "geometries of its own"),
    (["benchmark", "w.xyz", "--charge", "1", "--out-dir", "b"], "states charge 0"),
    (["advise", "raw/other"], "or raw/other is a prepared folder that does not exist"),
    (["benchmark", "raw/w", "--name", "x", "--out-dir", "b"], "has a name already"),
    (["sample", "w.xyz", "--config", "cation.yaml", "--scheme", "plain", "--out", "x.npz"], "states charge 0"),
    (["sample", "w.xyz", "--tempering", "300", "400", "--temperature", "350", "--scheme", "metropolis", "--out",
      "x.npz", "--learn"], "is not the first rung"),
    (["baseline", "--smiles-file", "one.smi", "--charge", "0"], "--charge belongs to one molecule"),
    (["baseline", "--structure", "w.xyz", "--molecule", "water"], "--structure is a molecule by itself"),
    (["baseline", "w.xyz", "--structure", "w.xyz"], "both structure files"),
    (["prepare", "one.smi", "--charge", "0"], "--charge belongs to a literal SMILES"),
    (["prepare", "w.xyz", "--molecule", "water"], "one structure file is one molecule"),
    (["qmmm", "--pdb", "w.xyz", "--qm-atoms", "0", "--charge", "0", "--out", "x.npz"], "of --pdb they are"),
    (["qmmm", "--smiles", "O", "--structure", "w.xyz", "--out", "x.npz"], "not allowed with"),
])
def test_a_flag_that_contradicts_is_one_sentence(words, answer, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.xyz").write_text(WATER.format(comment="charge=0"))
    (tmp_path / "one.smi").write_text("O water\n")
    (tmp_path / "neutral.yaml").write_text("charge: 0\n")
    (tmp_path / "cation.yaml").write_text("charge: 1\nspin_multiplicity: 2\n")
    opened(tmp_path / "w.xyz").molecule.save(tmp_path / "raw" / "w" / "molecule.npz")
    try:
        code = main(words)
    except SystemExit as ended:
        code = ended.code
    err = capsys.readouterr().err
    assert code == 2 and answer in err and err.count("\n") == 1 and not list(tmp_path.glob("*.npz*"))


def test_studies_take_a_structure_and_keep_what_they_prepare(tmp_path, capsys):
    """A benchmark writes the molecule where its commands read it, takes it again, and no other in its place."""
    from kstep.cli import benchmark
    from kstep.cli.flags import make_parser

    def loaded(*words):
        parser = make_parser("", "kstep benchmark")
        benchmark.add_flags(parser)
        parser.set_defaults(numbered=None)
        return benchmark.load(parser.parse_args([*words, "--out-dir", str(tmp_path / "b"), "--fast"])).plan.physics

    mine = tmp_path / "mine.xyz"
    mine.write_text(WATER.format(comment="charge=0"))
    first = loaded("--structure", str(mine))
    assert first.folder == tmp_path / "b/molecule/mine" and (first.folder / "system.xml").is_file()
    assert np.array_equal(Molecule.load(first.folder).conformers, first.molecule.conformers)
    assert np.allclose(loaded(str(mine)).molecule.conformers, first.molecule.conformers)
    mine.write_text(WATER.format(comment="charge=0").replace("0.117", "0.147"))
    with pytest.raises(UserError, match="holds another molecule of that name, or other geometries"):
        loaded("--structure", str(mine))
    advice = ["--md-config", "configs/md_fast.yaml", "--replicas", "8", "--most-cpu", "0.5", "--samples", "100"]
    assert main(["advise", "--structure", str(mine), *advice]) == 0
    assert "true call" in capsys.readouterr().out


# what samples

def test_geometries_are_starts_on_every_path(tmp_path, monkeypatch):
    """Of a file, of Atoms, of a Molecule: the same energies, one geometry for each replica, at the temperature."""
    source = shuffled("CO", n=3)
    AllChem.MMFFOptimizeMoleculeConfs(source)
    for n, conformer in enumerate(source.GetConformers()):  # three lengths of C-O, so that each start is known again
        x = conformer.GetPositions()
        carbon, oxygen = (next(a.GetIdx() for a in source.GetAtoms() if a.GetSymbol() == s) for s in "CO")
        hydroxyl = [oxygen, *(a.GetIdx() for a in source.GetAtomWithIdx(oxygen).GetNeighbors()
                              if a.GetSymbol() == "H")]
        x[hydroxyl] += 0.05 * n * (x[oxygen] - x[carbon])
        conformer.SetPositions(x)
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "mine.xyz", source)
    how = dict(scheme="plain", steps=1, burn_in_steps=0, replicas=3, workers=1, device="cpu", dt_fs=0.001)
    lengths = [np.linalg.norm(c.GetPositions()[oxygen] - c.GetPositions()[carbon]) for c in source.GetConformers()]
    physics = {"method": "GFN2-xTB", "relax_starts": False}  # they would all relax to one
    runs = [kstep.sample(subject, physics, temperature_K=350.0, out=f"{n}.npz", **how)
            for n, subject in enumerate((path, str(path), frames_of(source), kstep.prepare(path)))]
    for run in runs:
        x = run.all().positions
        found = 10 * np.linalg.norm(x[:, oxygen] - x[:, carbon], axis=1)
        assert np.unique(np.round(found, 2)) == pytest.approx(np.round(lengths, 2))
        assert run.metadata["temperature_K"] == 350.0 and run.metadata["smiles"] == "CO"
        assert run.energies == pytest.approx(runs[0].energies, abs=0.05)
    assert [run.metadata["molecule"] for run in runs] == ["mine", "mine", "CH4O", "mine"]


def test_stages_take_a_file_and_its_temperature(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.xyz").write_text(WATER.format(comment=""))
    short = ["--replicas", "1"]
    for setting in ("length_ps=0.01", "equilibration_ps=0.005", "hot_length_ps=0"):
        short += ["--set", setting]
    assert main(["baseline", "w.xyz", "--temperature", "350", "--out", "qm", *short]) == 0
    mm = ["--structure", "w.xyz", "--config", "md", "--temperature", "310", "--out", "mm"]
    assert main(["baseline", *mm, *short]) == 0
    for folder, temperature_K, method in (("qm", 350.0, "GFN2-xTB"), ("mm", 310.0, "mmff94")):
        run = load_trajectory(tmp_path / folder / "w" / "trajectory.npz")
        assert run.metadata["temperature_K"] == temperature_K and run.metadata["method"] == method
        assert {s["temperature_K"] for s in run.segments} == {temperature_K}
    assert main(["prepare", "w.xyz", "--out-dir", "raw", "--name", "mine"]) == 0
    assert Molecule.load("raw/mine").numbers.tolist() == [8, 1, 1]


def test_the_region_of_a_structure_is_the_whole_molecule(tmp_path, monkeypatch):
    """In a droplet, its walls still know its stereochemistry, whatever the order of its atoms."""
    from kstep.schemes.hybrid_config import HybridConfig
    from kstep.stages.region_sampling import RegionSettings, _system

    path = write(tmp_path / "mine.xyz", shuffled(CHIRAL, n=1))
    system = _system(RegionSettings(hybrid=HybridConfig(replicas=1), out=tmp_path / "x.npz", qm=QMConfig(),
                                    structure=path, waters=2))
    species = system.molecule.species()
    assert len(system.molecule) == 18 and len(species.stereo.centres) == 1
    assert species.inside(system.molecule.conformers).all()


def test_every_kind_of_file_is_tried_here():
    assert set(READERS) == {f".{kind}" for kind in KINDS}


def test_a_prepared_molecule_is_written_down_with_the_multiplicity_of_its_config(water, tmp_path):
    """Or runs and labels of two spins would be joined as those of one; nor are minima of one the starts of another."""
    physics = open_physics(replace(water, relaxed_on="GFN2-xTB"), QMConfig(spin_multiplicity=3))
    assert physics.molecule.multiplicity == physics.spec().settings["multiplicity"] == 3
    assert physics.molecule.relaxed_on != surface_of(physics.molecule, physics.spec())
    labels, x = Labels.empty(len(water)), water.conformers[:1]
    labels.append(x, np.zeros(1), np.zeros_like(x), 300.0)
    labels.save(tmp_path / "labels.npz", physics.molecule, method="GFN2-xTB", true_calls=1, dt_fs=1.0)
    with pytest.raises(UserError, match="holds labels of multiplicity 3, and water has multiplicity 1"):
        Labels.load(tmp_path / "labels.npz", open_physics(water, QMConfig()).molecule)
