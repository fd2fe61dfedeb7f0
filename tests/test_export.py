"""What RDKit, MDAnalysis and the rest read of exported runs and conformers is what was simulated."""

import json
import subprocess
import sys

import numpy as np
import pytest
from rdkit import Chem

import synthetic
from kstep.analysis.measure.populations import Conformer, Populations
from kstep.analysis.show.formats import export, to_atoms, to_rdkit
from kstep.analysis.show.formats.conformers import CONFORMER_FORMATS, export_conformers
from kstep.errors import UserError
from kstep.schemas import Trajectory, complete_trajectory
from kstep.units import kT
from test_formats import replica_after_replica, trajectory


def of_smiles(smiles, order=None, frames=3, box=None, **metadata):
    """A run of the molecule of a SMILES at RDKit's conformers, its atoms in another order where one is given."""
    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    from rdkit.Chem import rdDistGeom

    assert list(rdDistGeom.EmbedMultipleConfs(molecule, frames, randomSeed=1))
    order = np.arange(molecule.GetNumAtoms()) if order is None else np.array(order)
    place = np.argsort(order)
    numbers = np.array([a.GetAtomicNum() for a in molecule.GetAtoms()])[order]
    bonds = np.sort([[place[b.GetBeginAtomIdx()], place[b.GetEndAtomIdx()]] for b in molecule.GetBonds()], axis=1)
    pos = 0.1 * np.array([c.GetPositions()[order] for c in molecule.GetConformers()])
    rows = np.arange(frames)
    arrays = {"pos": pos, "vel": 0 * pos, "time_ps": 0.5 * rows, "step": rows, "replica": 0 * rows, "segment": 0 * rows,
              "Epot": -10.0 - rows, "Ekin": 0.0 * rows, "Etot": -10.0 - rows, "masses": np.ones(len(numbers)),
              "masses_sampler": np.ones(len(numbers)), "atom_types": numbers, "bonds": bonds}
    if box is not None:
        arrays["box"] = np.tile(box, (frames, 1, 1))
    segments = [{"replica": 0, "role": "train", "ensemble": "NVT", "temperature_K": 300.0, "n_dof": 3}]
    return Trajectory(**complete_trajectory(arrays),
                      metadata={"molecule": "m", "smiles": smiles, "scheme": "plain", "method": "GFN2-xTB",
                                "segments": segments, **metadata})


def read_sdf(path):
    return list(Chem.SDMolSupplier(str(path), removeHs=False))


@pytest.mark.parametrize("smiles", [
    "CC(=O)N[C@@H](C)C(=O)NC", "C/C=C\\C", "c1ccncc1", "[O-][N+](=O)c1ccccc1", "CC(=O)[O-]", "C[NH3+]", "CS(=O)(=O)C",
    "C#CC=C=C", "[2H]C([2H])([2H])O", "C[C@H](O)F"])
def test_an_sdf_holds_bond_orders_charges_isotopes_and_stereochemistry(smiles, tmp_path):
    charge = Chem.GetFormalCharge(Chem.MolFromSmiles(smiles))
    n = Chem.AddHs(Chem.MolFromSmiles(smiles)).GetNumAtoms()
    shuffled = np.random.default_rng(3).permutation(n)
    for order in (None, shuffled):
        run = of_smiles(smiles, order, charge=charge)
        found = read_sdf(export(run, tmp_path / f"{order is None}.sdf"))
        assert len(found) == 3
        for frame, molecule in enumerate(found):
            bare = Chem.RemoveHs(molecule)
            assert Chem.MolToSmiles(bare) == Chem.CanonSmiles(smiles)
            assert [a.GetAtomicNum() for a in molecule.GetAtoms()] == list(run.atom_types)
            assert Chem.GetFormalCharge(molecule) == charge
            assert np.abs(molecule.GetConformer().GetPositions() - 10.0 * run.pos[frame]).max() < 6e-5
            assert float(molecule.GetProp("energy_kJ_per_mol")) == run.Epot[frame]
            assert float(molecule.GetProp("time_ps")) == run.time_ps[frame]


def test_an_sdf_shows_the_handedness_of_the_frame_where_the_smiles_names_none(tmp_path):
    run = of_smiles("C[C@H](O)F", frames=1)
    run.metadata["smiles"] = "CC(O)F"
    mirrored = of_smiles("C[C@H](O)F", frames=1)
    mirrored.metadata["smiles"], mirrored.pos = "CC(O)F", mirrored.pos * [1, 1, -1]
    left, right = (Chem.MolToSmiles(Chem.RemoveHs(read_sdf(export(r, tmp_path / f"{hand}.sdf"))[0]))
                   for hand, r in (("run", run), ("mirrored", mirrored)))
    assert left == Chem.CanonSmiles("C[C@H](O)F") and right == Chem.CanonSmiles("C[C@@H](O)F")


def test_a_droplet_has_the_bonds_of_its_smiles_and_those_of_water(tmp_path):
    run = of_smiles("CC(=O)[O-].O.O", charge=0, box=np.diag([3.0, 3.1, 3.2]))
    run.metadata["smiles"] = "CC(=O)[O-]"  # of what is no water, as a run with a droplet stores it
    molecule = read_sdf(export(run, tmp_path / "run.sdf"))[0]
    assert sorted(Chem.MolToSmiles(Chem.RemoveHs(molecule)).split(".")) == sorted(["CC(=O)[O-]", "O", "O"])
    assert [float(x) for x in molecule.GetProp("box_A").split()][::4] == [30.0, 31.0, 32.0]


def test_without_smiles_the_valences_decide():
    run = of_smiles("CC(=O)OC")
    del run.metadata["smiles"]
    assert Chem.MolToSmiles(Chem.RemoveHs(to_rdkit(run))) == "COC(C)=O"
    charged = of_smiles("CC(=O)[O-]", charge=-1)
    del charged.metadata["smiles"]
    assert Chem.GetFormalCharge(to_rdkit(charged)) == -1


@pytest.mark.parametrize("change, words", [
    ({"smiles": "CCC"}, "are not those of its SMILES CCC"), ({"smiles": "C(("}, "cannot be read by RDKit"),
    ({"charge": 1}, "sum to 0, but the run's charge is 1")])
def test_what_an_sdf_cannot_say_is_one_sentence_and_no_file(change, words, tmp_path):
    run = of_smiles("CCO", charge=0)
    run.metadata.update(change)
    with pytest.raises(UserError, match=words):
        export(run, tmp_path / "run.sdf")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["pdb", "dcd", "xtc", "xyz"])
@pytest.mark.parametrize("box", [False, True])
def test_mdanalysis_reads_them(name, box, tmp_path):
    analysis = pytest.importorskip("MDAnalysis")
    run = trajectory(box)
    path = export(run, tmp_path / f"run.{name}")
    universe = analysis.Universe(str(path)) if name in ("pdb", "xyz") else \
        analysis.Universe(str(export(run, tmp_path / "top.pdb")), str(path))
    order = replica_after_replica(run)
    assert len(universe.trajectory) == len(order)
    for step, frame in zip(universe.trajectory, order):
        assert step.positions == pytest.approx(10.0 * run.pos[frame], abs=6e-3)
        if name == "xtc":
            assert step.time == pytest.approx(run.time_ps[frame], abs=1e-5)
        if box and name != "xyz":
            assert analysis.lib.mdamath.triclinic_vectors(step.dimensions) == pytest.approx(10.0 * run.box[frame],
                                                                                            abs=0.02)
    if name != "xyz":
        assert {tuple(sorted(b.indices)) for b in universe.bonds} == set(map(tuple, run.bonds))
        assert list(universe.atoms.elements) == [{1: "H", 6: "C", 8: "O"}[z] for z in run.atom_types]
    assert len(set(universe.atoms.names)) == len(run.atom_types) or name == "xyz"


def test_a_pdb_holds_formal_charges(tmp_path):
    run = of_smiles("CC(=O)[O-]", charge=-1, frames=1)
    molecule = Chem.MolFromPDBFile(str(export(run, tmp_path / "run.pdb")), removeHs=False, proximityBonding=False)
    assert [a.GetFormalCharge() for a in molecule.GetAtoms()] == [a.GetFormalCharge() for a in to_rdkit(run).GetAtoms()]
    assert Chem.GetFormalCharge(molecule) == -1


def populations_of(run, relaxed=None, converged=True):
    """Two conformers of a run, the frames 2 and 0."""
    first = Conformer("A", {"O": 180.0}, 0.7, 0.02, 0.0, 0.0, 120.0, 30, 1, 1.01, 2, relaxed)
    second = Conformer("B", {"O": 60.0}, 0.3, 0.02, 2.1133, 0.15, 110.0, 29, 2, 1.02, 0)
    return Populations("m", run.metadata["smiles"], "GFN2-xTB", 300.0, (first, second), {"count": 0, "population": 0.0,
                       "error": 0.0}, 5.1, 0.1, ["O"], [], [], 4, 100, [300.0], "true", None, converged)


@pytest.mark.parametrize("name", CONFORMER_FORMATS)
def test_conformers_come_with_population_and_free_energy(name, tmp_path):
    import ase.io
    import mdtraj

    run = of_smiles("C[NH2+]CC", charge=1)
    path = export_conformers(run, populations_of(run), tmp_path / f"run.{name}")
    text = path.read_text()
    if name == "sdf":
        first, second = read_sdf(path)
        assert float(first.GetProp("population")) == 0.7 and float(second.GetProp("population_error")) == 0.02
        assert float(second.GetProp("free_energy_kJ_per_mol")) == 2.1133 and second.GetProp("_Name") == "m B"
        assert float(second.GetProp("free_energy_error_kJ_per_mol")) == 0.15
        assert Chem.GetFormalCharge(first) == 1
        xyz = np.array([m.GetConformer().GetPositions() for m in (first, second)])
    elif name == "pdb":
        found = mdtraj.load(str(path))
        xyz = 10.0 * found.xyz
        assert "MODEL        1\n" in text and "REMARK 250 MODEL 1: conformer B, population 0.3000 +- 0.0200\n" in text
        assert "REMARK 250 MODEL 1: free energy 2.113 +- 0.150 kJ/mol at 300 K\n" in text
        assert max(map(len, text.splitlines())) <= 81
    else:
        images = ase.io.read(path, index=":")
        xyz = np.array([atoms.positions for atoms in images])
        if name == "extxyz":
            assert images[1].info["population"] == pytest.approx(0.3) and images[1].info["conformer"] == "B"
            assert images[1].get_potential_energy() == pytest.approx(run.Epot[0] / 96.485332, rel=1e-6)
        else:
            assert text.splitlines()[1] == ("conformer A, population 0.7000 +- 0.0200, free energy 0.000 +- 0.000 "
                                            "kJ/mol at 300 K")
    assert len(xyz) == 2 and xyz == pytest.approx(10.0 * run.pos[[2, 0]], abs=6e-3 if name == "pdb" else 6e-5)


def test_a_relaxed_conformer_is_written_relaxed_and_what_has_not_converged_says_so(tmp_path):
    run = of_smiles("CCO")
    minimum = run.pos[2] + 0.01
    found = populations_of(run, {"positions_nm": minimum, "energy_kJ": -12.5, "relative_energy_kJ": 0.0,
                                 "true_calls": 9, "converged": True, "kept": True}, converged=False)
    first, second = read_sdf(export_conformers(run, found, tmp_path / "run.sdf"))
    assert first.GetConformer().GetPositions() == pytest.approx(10.0 * minimum, abs=6e-5)
    assert float(first.GetProp("energy_kJ_per_mol")) == -12.5 and first.GetProp("relaxed") == "1"
    assert second.GetConformer().GetPositions() == pytest.approx(10.0 * run.pos[0], abs=6e-5)
    assert second.GetProp("relaxed") == "0" and second.GetProp("converged") == "0"
    assert "not converged" in export_conformers(run, found, tmp_path / "run.xyz").read_text()
    with pytest.raises(UserError, match="xtc has no place for what conformers are known by; take sdf, xyz"):
        export_conformers(run, found, tmp_path / "run.xtc")


def kstep(*words):
    return subprocess.run([sys.executable, "-m", "kstep", *map(str, words)], capture_output=True, text=True)


def test_one_command_writes_several_formats(tmp_path):
    run = synthetic.ethanol(0, 2, 6)
    synthetic.save(tmp_path / "e.npz", run)
    done = kstep("export", tmp_path / "e.npz", "--to", "sdf", "extxyz", "pdb", "--out-dir", tmp_path / "there")
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "there").iterdir()) == ["e.extxyz", "e.pdb", "e.sdf"]
    assert len(read_sdf(tmp_path / "there/e.sdf")) == 12 and "12 frames" in done.stderr


def test_of_several_formats_none_is_written_where_one_is_refused(tmp_path, capsys):
    from kstep.cli import main

    run = synthetic.ethanol(0, 2, 6)
    run.weight = np.linspace(1.0, 2.0, len(run.pos))
    synthetic.save(tmp_path / "e.npz", run)
    assert main(["export", str(tmp_path / "e.npz"), "--to", "sdf", "xtc"]) == 2
    assert "xtc" in capsys.readouterr().err and [p.name for p in tmp_path.iterdir()] == ["e.npz"]
    (tmp_path / "e.extxyz").write_text("kept")
    assert main(["export", str(tmp_path / "e.npz"), "--to", "sdf", "extxyz"]) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e.extxyz", "e.npz"]


@pytest.mark.parametrize("words, sentence", [
    (["run.npz"], "give either a file to write, such as run.sdf, or formats with --to"),
    (["run.npz", "run.sdf", "--to", "pdb"], "give either a file to write"),
    (["run.npz", "run.sdf", "--out-dir", "x"], "--out-dir is for --to"),
    (["run.npz", "--to", "sdf", "--format", "pdb"], "--format is that of one file"),
    (["run.npz", "--to", "sdf", "--conformers", "--all"], "leave out --all and --alike"),
    (["run.npz", "--to", "sdff"], "invalid choice: 'sdff'"),
    (["nothing.npz", "--to", "sdf"], "nothing.npz does not exist")])
def test_bad_flags_are_one_sentence(words, sentence, capsys):
    from kstep.cli import main

    try:
        code = main(["export", *words])
    except SystemExit as end:
        code = end.code
    said = capsys.readouterr().err
    assert code == 2 and sentence in said and len(said.strip().splitlines()) == 1


def test_weights_go_with_an_sdf(tmp_path):
    run = of_smiles("CCO")
    run.weight = np.array([0.5, 1.0, 1.5])
    assert [float(m.GetProp("weight")) for m in read_sdf(export(run, tmp_path / "run.sdf"))] == [0.5, 1.0, 1.5]
    assert json.dumps([m.GetProp("replica") for m in read_sdf(tmp_path / "run.sdf")]) == '["0", "0", "0"]'


@pytest.mark.parametrize("weight", [[], [0.5, 1.0, 1.5]])
def test_weights_of_an_sdf_free_its_frames_of_restraints(weight, tmp_path):
    run = of_smiles("CCO", restraints=[{"kind": "distance", "atoms": [0, 2], "centre": 0.25, "k": 1000.0}])
    run.weight, run.bias = np.array(weight), kT(300.0) * np.log([1.0, 2.0, 4.0])
    found = [float(m.GetProp("weight")) for m in read_sdf(export(run, tmp_path / "run.sdf"))]
    wanted = np.array([1.0, 2.0, 4.0]) * (weight or 1.0)
    assert found == pytest.approx(wanted / wanted.mean())
    assert found == [atoms.info["weight"] for atoms in to_atoms(run)]
