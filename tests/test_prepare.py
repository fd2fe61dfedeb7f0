"""From SMILES to molecule.npz, structure.pdb and system.xml; and what a wrong line is told."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openmm
import openmm.app
import pytest
from rdkit import Chem

from kstep.dihedrals import dihedrals_deg
from kstep.errors import UserError
from kstep.molecules.molecule import Molecule
from kstep.molecules.prepare import ensure_prepared, prepare_molecule, update_metadata, write_prepared
from kstep.molecules.smiles import Entry, read_smiles_file

ROOT = Path(__file__).resolve().parents[1]


def run_prep(*arguments):
    return subprocess.run([sys.executable, str(ROOT / "src" / "00_prep_mols.py"), *map(str, arguments)],
                          capture_output=True, text=True, timeout=120)


def test_a_wrong_line_stops_no_other_and_is_listed_at_the_end(tmp_path):
    smiles = tmp_path / "some.smi"
    smiles.write_text("# a comment\n\nCCO ethanol  # the good one\nC1CC broken\nCC ethanol\n"
                      "OB(O)O boric_acid\nC ../evil\nCC#N acetonitrile charge=0\n")
    out = tmp_path / "raw"
    done = run_prep("--smiles", smiles, "--out-dir", out, "--n-conformers", 5)
    assert done.returncode == 2
    assert "prepared 2 of 6 molecules (mmff94)" in done.stdout
    assert "line 4: SMILES 'C1CC' cannot be read" in done.stderr
    assert "line 5: name 'ethanol' is already used in line 3" in done.stderr
    assert "line 6: MMFF94 lacks parameters" in done.stderr
    assert "line 7: name '../evil' cannot be a folder name" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(p.name for p in out.iterdir()) == ["acetonitrile", "ethanol", "metadata.json"]
    assert sorted(p.name for p in (out / "ethanol").iterdir()) == ["molecule.npz", "structure.pdb", "system.xml"]
    assert set(json.loads((out / "metadata.json").read_text())) == {"acetonitrile", "ethanol"}

    molecule = Molecule.load(out / "ethanol")
    system = openmm.XmlSerializer.deserialize((out / "ethanol" / "system.xml").read_text())
    pdb = openmm.app.PDBFile(str(out / "ethanol" / "structure.pdb"))
    assert [atom.element.atomic_number for atom in pdb.topology.atoms()] == molecule.numbers.tolist()
    assert pdb.topology.getNumBonds() == len(molecule.bonds)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatform("Reference"))
    for positions, energy in zip(molecule.conformers, molecule.conformer_energies, strict=True):
        context.setPositions(positions)
        state = context.getState(energy=True, forces=True)
        assert state.getPotentialEnergy()._value == pytest.approx(energy, abs=1e-6)
        assert np.abs(state.getForces(asNumpy=True)._value).max() < 1.0  # minimised

    # A second run adds to metadata.json; a molecule without parameters is prepared for QM alone.
    again = run_prep("--smiles", "OB(O)O", "--name", "boric_acid", "--out-dir", out, "--force-field", "none")
    assert again.returncode == 0, again.stderr
    assert set(json.loads((out / "metadata.json").read_text())) == {"acetonitrile", "boric_acid", "ethanol"}
    assert sorted(p.name for p in (out / "boric_acid").iterdir()) == ["molecule.npz", "structure.pdb"]


@pytest.mark.parametrize("arguments, sentence", [
    (["--force-field", "mmff49"], "unknown force field 'mmff49'; did you mean 'mmff94'?"),
    (["--smiles", str(ROOT / "data" / "qm_molecules.smi"), "--molecule", "ethanl"], "did you mean 'ethanol'?"),
])
def test_the_script_answers_a_mistake_with_one_sentence(tmp_path, arguments, sentence):
    done = run_prep("--out-dir", tmp_path, *arguments)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("smiles, options, sentence", [
    ("C1CC", {}, "SMILES 'C1CC' cannot be read"),
    ("hello", {}, "SMILES 'hello' cannot be read"),
    ("CC(C)(C)(C)C", {}, "is no possible molecule: .*valence"),
    ("c1cccc1", {}, "is no possible molecule: .*kekulize"),
    ("", {}, "has no atoms"),
    ("C*", {}, "dummy atom"),
    ("CC(=O)[O-].[Na+]", {}, r"has 2 fragments \(CC\(=O\)\[O-\], \[Na\+\]\)"),
    ("CCO", {"charge": 1}, "charge=1 contradicts SMILES 'CCO', whose formal charges add up to 0"),
    ("[NH4+]", {"charge": 0}, "charge=0 contradicts"),
    ("CCO", {"multiplicity": 2}, "multiplicity=2 is impossible for the 26 electrons of 'CCO'.* odd"),
    ("O", {"multiplicity": 0}, "multiplicity=0 is impossible"),
    ("[H][H]", {"multiplicity": 5}, "multiplicity=5 is impossible for the 2 electrons"),
    ("[CH3]", {}, "is a radical .* state multiplicity=2"),
    ("[CH3]", {"multiplicity": 2}, "no parameters for radicals; --force-field none"),
    ("OB(O)O", {}, "MMFF94 lacks parameters .*; --force-field none prepares it for QM"),
    ("C", {"force_field": "amber"}, "unknown force field 'amber'"),
    ("C", {"n_conformers": 0}, "at least 1"),
    ("C1#CC1", {"max_attempts": 3}, "no 3-D structure .* in 3 attempts"),
])
def test_what_cannot_be_prepared_is_named(smiles, options, sentence):
    with pytest.raises(UserError, match=sentence) as failure:
        prepare_molecule("x", smiles, **options)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "..", "a b", "a\\b", "-rf", "metadata.json", "naïve", "a\n"])
def test_unsafe_names_are_refused(name):
    with pytest.raises(UserError, match="cannot be a folder name"):
        prepare_molecule(name, "C")


@pytest.mark.parametrize("line, sentence", [
    ("CCO", "line 1: 'CCO' has no name"),
    ("CCO ethyl alcohol", "line 1: unexpected 'alcohol' after name 'ethyl'"),
    ("CCO ethanol chrage=0", "did you mean 'charge'"),
    ("CCO ethanol charge=zero", "charge of 'ethanol' must be a whole number, not 'zero'"),
    ("CCO .ethanol", "line 1: name '.ethanol' cannot be a folder name"),
])
def test_a_line_that_cannot_be_read_is_named(tmp_path, line, sentence):
    path = tmp_path / "some.smi"
    path.write_text(line + "\nC methane\n")
    entries, problems = read_smiles_file(path)
    assert [entry.name for entry in entries] == ["methane"]
    assert len(problems) == 1 and sentence in problems[0]


def test_a_missing_or_empty_smiles_file_is_named(tmp_path):
    with pytest.raises(UserError, match="nothing.smi does not exist"):
        read_smiles_file(tmp_path / "nothing.smi")
    (tmp_path / "empty.smi").write_text("# only a comment\n\n")
    with pytest.raises(UserError, match="holds no molecule"):
        read_smiles_file(tmp_path / "empty.smi")


def test_the_mark_that_windows_begins_a_file_with_is_no_part_of_it(tmp_path):
    (tmp_path / "x.smi").write_bytes(b"\xef\xbb\xbfCCO ethanol\n")
    entries, problems = read_smiles_file(tmp_path / "x.smi")
    assert [entry.smiles for entry in entries] == ["CCO"] and not problems


def test_a_triple_bond_is_no_comment(tmp_path):
    path = tmp_path / "some.smi"
    path.write_text("CC#N acetonitrile\tmultiplicity=1 # a nitrile\n#C methane\n")
    entries, problems = read_smiles_file(path)
    assert not problems
    assert entries == [Entry("acetonitrile", "CC#N", multiplicity=1, line=1, where=f"{path} line 1")]


def test_preparation_repeats_bit_for_bit_and_follows_its_seed():
    first, second = (prepare_molecule("x", "CCCO", n_conformers=6, seed=3).molecule for _ in range(2))
    np.testing.assert_array_equal(first.conformers, second.conformers)
    other = prepare_molecule("x", "CCCO", n_conformers=6, seed=4).molecule
    assert other.conformers.shape != first.conformers.shape or not np.allclose(other.conformers, first.conformers)


def test_conformers_are_sorted_centred_and_distinct():
    molecule = prepare_molecule("ethanol", "CCO", n_conformers=20).molecule
    assert len(molecule.conformers) == 3  # anti and two gauche, which differ in the hydroxyl hydrogen alone
    assert (np.diff(molecule.conformer_energies) >= 0).all()
    centre = np.einsum("n,cnd->cd", molecule.masses, molecule.conformers) / molecule.masses.sum()
    np.testing.assert_allclose(centre, 0, atol=1e-12)
    assert len(prepare_molecule("neopentane", "CC(C)(C)C").molecule.conformers) == 1


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_starts_hold_the_form_of_a_peptide_that_crystals_do_not_show(seed):
    """C7ax of alanine dipeptide, phi near 70 degrees: what no start shows a network may wall off in silence."""
    molecule = prepare_molecule("x", "CC(=O)N[C@@H](C)C(=O)NC", seed=seed).molecule
    phi = dihedrals_deg(molecule.conformers, np.array([[1, 3, 4, 6]]))[:, 0]
    heights = molecule.conformer_energies - molecule.conformer_energies.min()
    assert heights[(phi > 50) & (phi < 90)].min(initial=np.inf) < 12.0  # kJ/mol at MMFF94
    assert (phi < 0).any()


def test_no_more_conformers_are_kept_than_were_asked_for():
    four, many = (prepare_molecule("x", "CCCCO", n_conformers=n).molecule for n in (4, 20))
    assert len(four.conformers) == 4 < len(many.conformers)
    assert len(prepare_molecule("x", "CCCCO", n_conformers=1).molecule.conformers) == 1


def test_bond_orders_and_charge_are_rdkits():
    molecule = prepare_molecule("benzoate", "[O-]C(=O)c1ccccc1", n_conformers=1).molecule
    assert molecule.charge == -1
    assert sorted(molecule.bond_orders.tolist()).count(1.5) == 6
    assert (molecule.bonds[:, 0] < molecule.bonds[:, 1]).all()


def test_open_stereochemistry_is_the_same_in_every_conformer(caplog):
    with caplog.at_level("WARNING", logger="kstep"):
        prepared = prepare_molecule("x", "CC(O)C(F)Cl", n_conformers=12)
    assert "open stereochemistry was settled as" in caplog.text
    isomers = set()
    for conformer in prepared.rdkit.GetConformers():
        read = Chem.Mol(prepared.rdkit)
        Chem.AssignStereochemistryFrom3D(read, conformer.GetId())
        isomers.add(Chem.MolToSmiles(Chem.RemoveHs(read)))
    assert prepared.rdkit.GetNumConformers() > 2
    assert len(isomers) == 1


def test_ensure_prepared_keeps_what_is_there_and_prepares_what_is_not(tmp_path):
    hydrogen_chloride = Entry("hydrogen_chloride", "Cl")  # MMFF94 has no type for it
    made = ensure_prepared(hydrogen_chloride, tmp_path)
    assert made.force_field == "none"
    stamp = (tmp_path / "hydrogen_chloride" / "molecule.npz").stat().st_mtime_ns
    kept = ensure_prepared(Entry("hydrogen_chloride", "[H]Cl"), tmp_path, seed=9)
    assert (tmp_path / "hydrogen_chloride" / "molecule.npz").stat().st_mtime_ns == stamp
    np.testing.assert_array_equal(kept.conformers, made.conformers)
    with pytest.raises(UserError, match="holds 'Cl' .* not 'CC'; rename"):
        ensure_prepared(Entry("hydrogen_chloride", "CC"), tmp_path)
    with pytest.raises(UserError, match="line 7: SMILES 'C1C' cannot be read"):
        ensure_prepared(Entry("broken", "C1C", where="line 7"), tmp_path)


def test_another_force_fields_system_does_not_linger(tmp_path):
    write_prepared(prepare_molecule("methane", "C"), tmp_path)
    assert (tmp_path / "methane" / "system.xml").exists()
    write_prepared(prepare_molecule("methane", "C", force_field="none"), tmp_path)
    assert not (tmp_path / "methane" / "system.xml").exists()


def test_a_broken_metadata_file_is_not_overwritten(tmp_path):
    (tmp_path / "metadata.json").write_text("{ half")
    with pytest.raises(UserError, match="metadata.json is not a JSON object"):
        update_metadata(tmp_path, {"a": {}})
    assert (tmp_path / "metadata.json").read_text() == "{ half"


def test_preparing_side_by_side_loses_no_record(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: update_metadata(tmp_path, {f"m{i}": {}}), range(80)))
    assert len(json.loads((tmp_path / "metadata.json").read_text())) == 80


@pytest.mark.parametrize("file, count", [("molecules.smi", 12), ("qm_molecules.smi", 22)])
def test_the_shipped_molecules_all_have_mmff94_parameters(file, count):
    entries, problems = read_smiles_file(ROOT / "data" / file)
    assert not problems and len(entries) == count
    for entry in entries:
        prepared = prepare_molecule(entry.name, entry.smiles, n_conformers=1, charge=entry.charge,
                                    multiplicity=entry.multiplicity)
        assert prepared.molecule.charge == 0 and prepared.molecule.multiplicity == 1
