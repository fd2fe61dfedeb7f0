"""What other programs read is what was simulated: positions, bonds, energies, forces, time and box, in their units."""

import sys

import numpy as np
import pytest
from ase.io import read

import synthetic
from kstep.analysis.show.formats import FORMATS, export, to_atoms, to_mdtraj
from kstep.errors import UserError
from kstep.schemas import PER_FRAME, Trajectory, complete_trajectory
from kstep.units import KJ_PER_EV

FINEST_NM = {"xyz": 1e-9, "extxyz": 1e-9, "traj": 1e-12, "pdb": 6e-5, "dcd": 1e-6, "xtc": 6e-4, "hdf5": 1e-6}
BY_ASE, BY_MDTRAJ = ("xyz", "extxyz", "traj"), ("pdb", "dcd", "xtc", "hdf5")


def trajectory(box=False, scheme="plain"):
    """Two replicas of ethanol, interleaved as hybrids store them, with forces; in a skewed box or alone."""
    run = synthetic.ethanol(0, 2, 6, scheme=scheme)
    mixed = np.argsort(run.step, kind="stable")
    arrays = {key: value[mixed] if len(value) == len(mixed) else value
              for key, value in vars(run).items() if key != "metadata"}
    arrays["forces"] = np.random.default_rng(1).standard_normal(run.pos.shape) * 500.0
    if box:
        arrays["box"] = np.tile([[3.0, 0, 0], [0.4, 3.1, 0], [0.2, 0.3, 3.2]], (len(mixed), 1, 1))
    return Trajectory(**complete_trajectory(arrays), metadata=run.metadata)


def replica_after_replica(run):
    return np.lexsort((run.step, run.replica))


@pytest.mark.parametrize("box", [False, True])
@pytest.mark.parametrize("name", BY_ASE)
def test_ase_reads_what_ase_writes(name, box, tmp_path):
    run = trajectory(box)
    images = read(export(run, tmp_path / f"run.{name}"), index=":")
    order = replica_after_replica(run)
    assert len(images) == len(order)
    for atoms, frame in zip(images, order):
        assert (atoms.numbers == run.atom_types).all()
        assert atoms.positions == pytest.approx(10.0 * run.pos[frame], abs=10 * FINEST_NM[name])
        if name == "xyz":
            continue
        assert atoms.get_potential_energy() * KJ_PER_EV == pytest.approx(run.Epot[frame])
        assert atoms.get_forces() * KJ_PER_EV * 10.0 == pytest.approx(run.forces[frame], abs=1e-4)
        # velocities and masses
        assert atoms.get_kinetic_energy() * KJ_PER_EV == pytest.approx(run.Ekin[frame], rel=1e-5)
        assert atoms.pbc.all() == box and atoms.info.get("replica", run.replica[frame]) == run.replica[frame]
        if box:
            assert atoms.cell[:] == pytest.approx(10.0 * run.box[frame])


@pytest.mark.parametrize("box", [False, True])
@pytest.mark.parametrize("name", BY_MDTRAJ)
def test_mdtraj_reads_what_mdtraj_writes(name, box, tmp_path):
    import mdtraj

    run = trajectory(box)
    if name == "hdf5":
        pytest.importorskip("tables", minversion="3")  # a benchmark of that name has no version
    path = export(run, tmp_path / ("run.h5" if name == "hdf5" else f"run.{name}"))
    found = mdtraj.load(str(path), **({} if name in ("pdb", "hdf5") else {"top": to_mdtraj(run).topology}))
    order = replica_after_replica(run)
    assert np.abs(found.xyz - run.pos[order]).max() < FINEST_NM[name]
    assert [a.element.atomic_number for a in found.topology.atoms] == list(run.atom_types)
    assert {tuple(sorted((a.index, b.index))) for a, b in found.topology.bonds} == set(map(tuple, run.bonds))
    if name in ("xtc", "hdf5"):
        assert found.time == pytest.approx(run.time_ps[order])
    assert (found.unitcell_vectors is not None) == box
    if box:
        assert found.unitcell_vectors[0] == pytest.approx(run.box[0], abs=2e-3)


def test_rdkit_finds_the_bonds_of_a_pdb(tmp_path):
    from rdkit import Chem

    run = trajectory()
    for key in PER_FRAME:  # of several models RDKit reads the first alone, and no bonds
        setattr(run, key, getattr(run, key)[:1])
    molecule = Chem.MolFromPDBFile(str(export(run, tmp_path / "run.pdb")), removeHs=False, proximityBonding=False)
    assert {(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in molecule.GetBonds()} == set(map(tuple, run.bonds))


@pytest.mark.parametrize("box", [False, True])
def test_ase_finds_as_many_frames_in_a_pdb_as_there_are(box, tmp_path):
    """It takes the END behind the last ENDMDL for one more, without atoms, and that for the one to give."""
    run = trajectory(box)
    path, order = export(run, tmp_path / "run.pdb"), replica_after_replica(run)
    images = read(path, ":")
    assert np.array([atoms.positions for atoms in images]) == pytest.approx(10.0 * run.pos[order], abs=6e-4)
    assert read(path).positions == pytest.approx(10.0 * run.pos[order[-1]], abs=6e-4)
    assert all(atoms.pbc.all() == box for atoms in images)


def test_velocities_that_follow_no_dynamics_are_left_out():
    assert not to_atoms(trajectory(scheme="metropolis"))[0].has("momenta")
    assert to_atoms(trajectory())[0].has("momenta")


@pytest.mark.parametrize("order, names", [
    ([8, 1, 1, 8, 1, 1, 6, 1, 1, 1, 1], ["HOH", "HOH", "MOL"]),  # each molecule's atoms together
    ([8, 6, 1, 1, 1, 1, 1, 1], ["MOL"]),  # hydrogens last, as RDKit adds them
])
def test_molecules_are_residues_where_their_atoms_stand_together(order, names):
    numbers = np.array(order)
    bonds = [[0, 1], [0, 2], [3, 4], [3, 5], [6, 7], [6, 8], [6, 9], [6, 10]] if len(order) == 11 else \
        [[0, 2], [0, 3], [1, 4], [1, 5], [1, 6], [1, 7]]
    n = len(numbers)
    run = Trajectory(**complete_trajectory({
        "pos": np.random.default_rng(0).random((1, n, 3)), "vel": np.zeros((1, n, 3)), "time_ps": np.zeros(1),
        "step": np.zeros(1), "replica": np.zeros(1), "segment": np.zeros(1), "Epot": np.zeros(1), "Ekin": np.zeros(1),
        "Etot": np.zeros(1), "masses": np.ones(n), "masses_sampler": np.ones(n), "atom_types": numbers,
        "bonds": np.array(bonds)}), metadata={"scheme": "plain"})
    topology = to_mdtraj(run).topology
    assert [residue.name for residue in topology.residues] == names
    assert [atom.element.atomic_number for atom in topology.atoms] == order
    assert len({(atom.residue.index, atom.name) for atom in topology.atoms}) == n


def test_every_format_is_read_back_here():
    assert set(FORMATS) == {*BY_ASE, *BY_MDTRAJ, "sdf"}  # the last in test_export.py


def test_a_missing_library_is_named_in_one_sentence(tmp_path, monkeypatch, capsys):
    """MDTraj's own words for PyTables are a page on stderr, and an ImportError that names no package."""
    monkeypatch.setitem(sys.modules, "tables", None)
    with pytest.raises(UserError, match="takes the package 'tables'"):
        export(trajectory(), tmp_path / "run.h5")
    assert not list(tmp_path.iterdir()) and capsys.readouterr().err == ""


def test_an_unknown_format_is_one_sentence_and_leaves_no_file(tmp_path):
    with pytest.raises(UserError, match="no format is called 'dcdd'; did you mean 'dcd'"):
        export(trajectory(), tmp_path / "run.dcdd")
    with pytest.raises(UserError, match="no format is called 'xyzz'"):
        export(trajectory(), tmp_path / "run.xyz", "xyzz")
    assert not list(tmp_path.iterdir())
