"""Conformers against another program's list: relaxed, told apart, found or missed, and populations with a fair p."""

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from ase.data import chemical_symbols
from rdkit import Chem
from rdkit.Chem import rdMolAlign

import conformers
import crest
import scaling
import study_tables
from conftest import ROOT, molecule_from_smiles
from kstep.analysis.measure.statistics import estimate_means
from kstep.errors import UserError
from kstep.files import write_json_compact
from kstep.forces.local_pool import EvaluationPool
from kstep.learning.turned_torsions import turn
from kstep.molecules.molecule import Molecule
from kstep.runs.settings import share_replicas
from kstep.schemas import Trajectory, complete_trajectory
from kstep.stages.physics import TruePhysics, load_physics
from kstep.units import ANGSTROM_PER_NM, KJ_PER_HARTREE, kT

RNG = np.random.default_rng(3)


def rotation(rng=RNG) -> np.ndarray:
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    return turn * np.sign(np.linalg.det(turn))


# relaxation

def test_relaxing_finds_the_minimum_of_every_geometry():
    """Two wells per coordinate of very different curvatures: each row goes downhill into its own."""
    wells = RNG.uniform(0.1, 0.3, (2, 3))
    stiff = 10.0 ** RNG.uniform(3.0, 6.0, (2, 3))

    def asked(x):
        return (stiff * (x**2 - wells**2) ** 2).sum(axis=(1, 2)), -4.0 * stiff * x * (x**2 - wells**2)

    start = wells * RNG.choice([-1.0, 1.0], (20, 2, 3)) + RNG.normal(0.0, 0.02, (20, 2, 3))
    found = conformers.relax(asked, start, tolerance=1e-3)
    assert found.converged.all() and np.abs(found.energy).max() < 1e-6
    assert np.allclose(np.abs(found.positions), wells, atol=1e-4)
    assert (np.sign(found.positions) == np.sign(start)).all()


def test_a_geometry_without_an_answer_keeps_the_others_going():
    def asked(x):
        energy = 0.5e4 * (x**2).sum(axis=(1, 2))
        return np.where(x[:, 0, 0] > 5.0, np.nan, energy), -1e4 * x

    start = RNG.normal(0.0, 0.1, (4, 2, 3))
    start[2] += 10.0
    found = conformers.relax(asked, start)
    assert found.converged.tolist() == [True, True, False, True]
    assert np.isnan(found.energy[2]) and (found.energy[[0, 1, 3]] < 1e-3).all()


# which atoms are alike, and which conformers

@pytest.mark.parametrize(("smiles", "orders"), [("CC(=O)O", 1), ("CC(=O)[O-]", 2), ("CC(C)C", 6), ("Cc1ccccc1", 2),
                                                ("C[N+](=O)[O-]", 2)])
def test_atoms_that_bonds_do_not_tell_apart_are_exchanged(smiles, orders):
    """An acid's oxygens differ by a hydrogen that is not looked at; resonance forms do not differ."""
    molecule = molecule_from_smiles(smiles, "m", 1)
    heavy = np.flatnonzero(molecule.numbers != 1)
    found = conformers.equivalent_orders(molecule.numbers, molecule.bonds, heavy)
    assert len(found) == orders
    assert all((np.sort(order) == np.arange(len(heavy))).all() for order in found)
    assert (molecule.numbers[heavy][found] == molecule.numbers[heavy]).all()


def rdkit_rmsd(smiles, a, b) -> float:
    mol = Chem.RemoveHs(Chem.AddHs(Chem.MolFromSmiles(smiles)))
    heavy = mol.GetNumAtoms()  # hydrogens that were added come last
    ids = [mol.AddConformer(Chem.Conformer(heavy), assignId=True) for _ in range(2)]
    for number, x in zip(ids, (a, b), strict=True):
        mol.GetConformer(number).SetPositions(np.ascontiguousarray(x[:heavy] * ANGSTROM_PER_NM))
    return rdMolAlign.GetBestRMS(Chem.Mol(mol), mol, *ids)


def test_distances_of_geometries_are_those_of_rdkit():
    smiles = "C[C@H](O)Cc1ccccc1"
    molecule = molecule_from_smiles(smiles, "m", 4)
    likeness = conformers.Likeness(molecule)
    assert not likeness.mirror
    found = likeness.rmsd(molecule.conformers[0], molecule.conformers)
    wanted = [rdkit_rmsd(smiles, molecule.conformers[0], x) for x in molecule.conformers]
    assert np.allclose(found, wanted, atol=1e-4) and found.max() > 0.5
    flipped = molecule.conformers[0][_flipped_ring(molecule)] @ rotation() + 0.3
    assert likeness.rmsd(molecule.conformers[0], flipped[None])[0] < 1e-6


def _flipped_ring(molecule) -> np.ndarray:
    """An order of atoms with the two sides of the phenyl exchanged, which changes no bond."""
    everything = np.arange(len(molecule))
    orders = conformers.equivalent_orders(molecule.numbers, molecule.bonds, np.flatnonzero(molecule.numbers != 1))
    everything[:orders.shape[1]] = next(order for order in orders if (order != np.arange(orders.shape[1])).any())
    return everything


def test_a_mirror_image_is_the_same_conformer_of_an_achiral_molecule_alone():
    for smiles, alike in (("CCCO", True), ("C[C@H](O)CC", False)):
        molecule = molecule_from_smiles(smiles, "m", 6)
        likeness = conformers.Likeness(molecule)
        twisted = max(molecule.conformers, key=lambda x: abs(np.linalg.det(x[1:4] - x[0])))
        mirror = twisted * [1.0, 1.0, -1.0] @ rotation()
        assert (likeness.rmsd(twisted, mirror[None])[0] < 1e-6) == alike
        assert likeness.find(twisted, 0.0, mirror[None], np.zeros(1)) == (0 if alike else None)
        assert likeness.images(twisted) == (2 if alike else 1)


def test_a_conformer_stands_for_all_that_other_numberings_make_of_it():
    """Pentane: one tt, four tg, two g+g+; by energies alone tg has four times the weight of tt, not twice."""
    molecule = molecule_from_smiles("CCCCC", "pentane", 12)
    likeness = conformers.Likeness(molecule, rmsd_A=crest.TWICE_A)
    tt = max(molecule.conformers, key=lambda x: np.linalg.norm(x[4] - x[0]))  # the longest
    assert likeness.images(tt) == 1
    turned = turned_about(turned_about(tt, 1, 2, -120.0), 3, 2, -120.0)
    assert likeness.images(turned_about(tt, 1, 2, -120.0)) == 4 and likeness.images(turned) == 2
    butanol = molecule_from_smiles("C[C@H](O)CC", "butanol", 1)  # its mirror image is another molecule
    assert conformers.Likeness(butanol).images(butanol.conformers[0]) == 1


def turned_about(x: np.ndarray, first: int, second: int, degrees: float) -> np.ndarray:
    """A chain (N,3), whose carbons are the first atoms, with all carbons before `first` turned about a bond."""
    axis = (x[second] - x[first]) / np.linalg.norm(x[second] - x[first])
    carbons = range(first) if first < second else range(first + 1, 5)
    moved = x.copy()
    for atom in carbons:
        d, angle = x[atom] - x[first], np.radians(degrees)
        moved[atom] = x[first] + (d * np.cos(angle) + np.cross(axis, d) * np.sin(angle)
                                  + axis * (axis @ d) * (1 - np.cos(angle)))
    return moved


def test_energy_tells_apart_what_heavy_atoms_do_not():
    molecule = molecule_from_smiles("CCO", "m", 1)
    likeness, x = conformers.Likeness(molecule), molecule.conformers[0]
    geometries, energies = np.stack([x, x, x @ rotation(), x, x]), np.array([0.7, 0.0, 0.3, np.nan, 5.0])
    conformer, lowest = likeness.group(geometries, energies)
    assert conformer.tolist() == [1, 0, 0, -1, 2] and lowest.tolist() == [1, 0, 4]


def test_static_populations_count_mirror_images():
    found = conformers.boltzmann(np.array([10.0, 10.0 + kT(298.15) * np.log(2.0)]), np.array([1, 2]), 298.15)
    assert found == pytest.approx([0.5, 0.5])
    assert conformers.boltzmann(np.array([0.0, kT(298.15) * np.log(3.0)]), np.array([1, 1]), 298.15)[0] == (
        pytest.approx(0.75))


# another program's file

def write_ensemble(path: Path, numbers, positions, energies, order) -> Path:
    """An xyz as CREST writes it: A, hartree, and an order of atoms of its own."""
    path.write_text("".join(
        f"  {len(order)}\n  {energy / KJ_PER_HARTREE:.8f}\n"
        + "".join(f" {chemical_symbols[numbers[a]]} {' '.join(f'{c:.10f}' for c in x[a] * ANGSTROM_PER_NM)}\n"
                  for a in order) for x, energy in zip(positions, energies, strict=True)))
    return path


def test_an_ensemble_is_read_and_its_atoms_are_put_in_the_order_of_ours(tmp_path):
    molecule = molecule_from_smiles("N[C@@H](C)C(=O)O", "alanine", 2)
    order = np.random.default_rng(5).permutation(len(molecule))
    path = write_ensemble(tmp_path / "a.xyz", molecule.numbers, molecule.conformers, [-5.0, 1.0], order)
    numbers, positions, hartree = conformers.read_ensemble(path)
    assert hartree * KJ_PER_HARTREE == pytest.approx([-5.0, 1.0], abs=1e-4)
    assert np.allclose(positions, molecule.conformers[:, order], atol=1e-9)
    back = positions[:, conformers.order_of(molecule, numbers, positions[0])]
    assert molecule.species().inside(back).all()
    heavy = molecule.numbers != 1
    assert np.allclose(back[:, heavy], molecule.conformers[:, heavy], atol=1e-9)
    assert conformers.order_of(molecule_from_smiles("CC(N)C=O", "other", 1), numbers, positions[0]) is None


def test_a_list_of_the_other_enantiomer_is_mirrored_and_of_a_diastereomer_refused():
    molecule = molecule_from_smiles("N[C@@H](C)C(=O)O", "alanine", 2)
    kept, inside, mirrored = conformers.as_named(molecule, -molecule.conformers)
    assert mirrored and inside.all() and np.array_equal(kept, molecule.conformers)
    kept, inside, mirrored = conformers.as_named(molecule, molecule.conformers)
    assert not mirrored and inside.all() and np.array_equal(kept, molecule.conformers)
    two = molecule_from_smiles("C[C@@H](O)[C@H](Cl)Br", "two", 1)
    other = molecule_from_smiles("C[C@@H](O)[C@@H](Cl)Br", "other", 1)
    assert not conformers.as_named(two, other.conformers)[1].any()


@pytest.mark.parametrize("text", ["", "2\n", "1\nno energy\nH 0 0 0\n", "1\n-1.0\nXx 0 0 0\n", "1\n-1.0\nH 0 0\n"])
def test_what_is_no_ensemble_is_refused_in_a_sentence(tmp_path, text):
    path = tmp_path / "a.xyz"
    path.write_text(text)
    with pytest.raises(UserError, match="is no xyz file"):
        conformers.read_ensemble(path)
    with pytest.raises(UserError, match="cannot be read"):
        conformers.read_ensemble(tmp_path / "missing.xyz")


# populations

def hopping(rng, populations, chains, frames, memory=0.8) -> np.ndarray:
    """States (chains, frames) that stay with probability `memory`, and else are drawn anew from the populations."""
    drawn = rng.choice(len(populations), (chains, frames), p=populations)
    stays = rng.random((chains, frames)) < memory
    for t in range(1, frames):
        drawn[:, t] = np.where(stays[:, t], drawn[:, t - 1], drawn[:, t])
    return drawn


def p_of(rng, first, second, frames) -> float:
    return crest.homogeneity([estimate_means([np.eye(len(first))[chain] for chain in hopping(rng, p, 8, frames)], 1.0)
                              for p in (first, second)])


def test_halves_of_one_ensemble_agree_and_of_two_do_not():
    """p is that of an honest test: small ones are as rare as they say, though frames remember each other."""
    rng, even = np.random.default_rng(0), np.array([0.5, 0.2, 0.2, 0.07, 0.03])
    p = np.array([p_of(rng, even, even, 200) for _ in range(200)])
    assert 0.005 <= (p < 0.05).mean() <= 0.10 and 0.35 < p.mean() < 0.70
    other = np.array([0.38, 0.32, 0.2, 0.07, 0.03])
    assert np.median([p_of(rng, even, other, 1000) for _ in range(20)]) < 0.01


def test_chains_that_never_left_their_conformers_do_not_agree():
    stuck = [estimate_means([np.eye(2)[np.full(50, state)] for _ in range(8)], 1.0) for state in (0, 1)]
    assert crest.homogeneity(stuck) < 1e-3
    assert crest.homogeneity([stuck[0], stuck[0]]) is None  # one conformer alone says nothing


# the whole comparison, on a made-up run of a molecule of four conformers

@pytest.fixture(scope="module")
def propanol():
    """The molecule with its GFN2-xTB minima for conformers, best first; its physics."""
    molecule = molecule_from_smiles("CCCO", "propanol", 14)
    physics = TruePhysics(molecule, load_physics(ROOT / "configs/qm.yaml"))
    backend = physics.spec(warm_start=False).build()
    relaxed = conformers.relax(ask_of(backend), molecule.conformers)
    _, best = conformers.Likeness(molecule).group(relaxed.positions, relaxed.energy)
    assert relaxed.converged.all() and len(best) >= 4
    minima = Molecule(**{**vars(molecule), "conformers": relaxed.positions[best], "conformer_energies":
                         relaxed.energy[best]})
    return minima, TruePhysics(minima, physics.config), backend


def ask_of(backend):
    def asked(x):
        found = [backend.energy_and_forces(one) for one in x]
        return np.array([e for e, _ in found]), np.array([f for _, f in found])

    return asked


def made_up_run(molecule, populations, weight=None, chains=8) -> Trajectory:
    """Frames of conformers with noise, in given populations, the same in every chain."""
    rng, frames = np.random.default_rng(1), sum(populations)
    state = np.array([rng.permutation(np.repeat(np.arange(len(populations)), populations)) for _ in range(chains)])
    x = molecule.conformers[state.T.ravel()] + rng.normal(0.0, 0.004, (chains * frames, len(molecule), 3))
    x = np.array([one @ rotation(rng) for one in x])
    arrays = complete_trajectory({
        "pos": x, "vel": np.zeros_like(x), "time_ps": np.repeat(np.arange(frames) * 1.0, chains),
        **dict.fromkeys(("Ekin", "Epot", "Etot"), rng.normal(size=len(x))),
        "step": np.repeat(np.arange(frames), chains),
        "replica": np.tile(np.arange(chains), frames), "segment": np.tile(np.arange(chains), frames),
        "masses": molecule.masses, "masses_sampler": molecule.masses, "atom_types": molecule.numbers,
        "bonds": molecule.bonds, **({} if weight is None else {"weight": weight[state.T.ravel()]})})
    segments = [{"replica": r, "role": "train", "ensemble": "NVT", "temperature_K": 300.0, "n_dof": 30}
                for r in range(chains)]
    return Trajectory(**arrays, metadata={
        "segments": segments, "molecule": "propanol", "replicas": chains, "temperature_K": 300.0,
        "checkpoint": "network.pt", "scheme": "nested", "true_calls": 120, "true_calls_burn_in": 20,
        "true_calls_training": 300, "cpu_s": 1800.0, "cpu_s_training": 1700.0, "acceptance": 0.8, "jump_fs": 1000.0,
        "k_steps": 1000, "dt_fs": 1.0, "save_interval_steps": 1})


POPULATIONS = [2, 0, 1, 1]  # frames of each chain


@pytest.fixture(scope="module")
def relaxed_frames(propanol):
    """What a network without error would make of the frames of the made-up run."""
    molecule, _, backend = propanol
    return conformers.relax(ask_of(backend), crest.Frames.of(made_up_run(molecule, POPULATIONS), 1000).positions)


@pytest.fixture
def compared(propanol, relaxed_frames, tmp_path, monkeypatch):
    """judge() of a run with populations 2 : 1 : 1 of conformers 0, 2 and 3, against a list of conformers 0, 1 and 2.

    The list has one twice, once as its mirror image, another order of atoms, and geometries that are not quite relaxed.
    """
    molecule, physics, _ = propanol
    monkeypatch.setattr(crest, "on_network", lambda *_: relaxed_frames)
    rows = [0, 1, 2, 1]
    listed = molecule.conformers[rows] * np.array([1.0, -1.0, 1.0, 1.0])[:, None, None]
    path = write_ensemble(tmp_path / "list.xyz", molecule.numbers, listed + RNG.normal(0.0, 1e-4, listed.shape),
                          molecule.conformer_energies[rows], np.random.default_rng(2).permutation(len(molecule)))

    def judged(weight=None):
        return crest.judge(molecule, physics, made_up_run(molecule, POPULATIONS, weight), path, tmp_path)

    return judged


def test_what_is_relaxed_is_kept_part_by_part(propanol, tmp_path, monkeypatch):
    """A benchmark that ends within the second part asks for the first no more, and finds what one part finds."""
    molecule, physics, _ = propanol
    x = molecule.conformers[:3] + RNG.normal(0.0, 1e-3, molecule.conformers[:3].shape)
    whole, lost = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    lost.mkdir()
    with EvaluationPool(physics.spec(warm_start=False), 1) as pool:
        expected, calls = crest.on_truth(pool, molecule, x, whole)
        monkeypatch.setattr(crest, "AT_A_TIME", 2)
        monkeypatch.setattr(crest, "relax", lambda ask, part: conformers.relax(ask, part) if len(part) == 2 else cut())
        with pytest.raises(KeyboardInterrupt):
            crest.on_truth(pool, molecule, x, lost)
        monkeypatch.setattr(crest, "relax", conformers.relax)
        before = pool.true_calls
        found, again = crest.on_truth(pool, molecule, x, lost)
    assert len(list(lost.glob("relaxed_*.npz"))) == 2 and again == calls and 0 < pool.true_calls - before < calls
    assert np.allclose(found.positions, expected.positions, atol=1e-6) and found.converged.all()
    assert np.allclose(found.energy, expected.energy, atol=1e-4)


def cut():
    raise KeyboardInterrupt


def test_conformers_are_found_missed_and_held_in_excess(compared, propanol, monkeypatch):
    row, energies = compared(), propanol[0].conformer_energies
    assert row["crest"] == {"listed": 4, "another_species": 0, "minima": 3, "distinct": 3, "mirrored": False,
                            "unconverged": 0}
    assert row["ours"]["distinct"] == 3 and row["ours"]["weight_without_conformer"] == 0
    found, missed = row["important"]  # conformer 2 has less than 3 %
    assert found["static"] + missed["static"] == pytest.approx(1.0, abs=0.03)
    ratio = np.exp(-missed["energy"] / kT(298.15))
    assert missed["static"] / found["static"] == pytest.approx(ratio, rel=1e-3)  # what is listed twice counts once
    assert missed["energy"] == pytest.approx(energies[1] - energies[0], abs=0.01)
    assert missed["energy_listed"] == pytest.approx(energies[1] - energies[0], abs=1e-3)
    assert found["found"] and found["measured"] == pytest.approx(0.5) and 0.0 < found["measured_error"] < 0.1
    assert not missed["found"] and 0.0 < missed["measured_below"] < 1.0 and missed["measured"] == 0.0
    assert (row["important_missed"], row["found_of_all"], row["measured_found"]) == (1, 2, pytest.approx(0.75))
    (excess,) = row["excess"]
    assert excess["energy"] == pytest.approx(energies[3] - energies[0], abs=0.02)
    assert excess["measured"] == pytest.approx(0.25) and row["lowest_below_crest"] == pytest.approx(0.0, abs=0.02)
    assert row["analysis"]["true_calls"] > 0 and row["analysis"]["true_calls_crest"] >= 3
    monkeypatch.setattr(crest, "relax", None)  # what was relaxed is kept, and what it took is counted
    again = compared()
    assert {**again["analysis"], "cpu_s_network": 0} == {**row["analysis"], "cpu_s_network": 0}
    assert again["important"] == row["important"]
    assert row["halves"]["p"] > 0.05 and sum(row["halves"]["chains"]) == 8


def test_one_of_ours_that_two_of_theirs_are_found_in_has_its_population_once(propanol):
    """Ours lies between two of CREST's, each within 0.3 A of it but not of the other."""
    molecule = propanol[0]
    x = molecule.conformers[0]
    aside = x + 0.023 * np.where(np.arange(len(x)) % 2, 1.0, -1.0)[:, None] * [1.0, 0.0, 0.0]
    other = x - (aside - x)
    likeness = conformers.Likeness(molecule)
    frames = crest.Frames.of(made_up_run(molecule, [2]), 1000)
    ours = crest.Conformers(x[None], np.zeros(1), np.zeros(len(frames.positions), dtype=int), {}, 0)
    theirs = crest.Ensemble(np.array([aside, other]), np.array([0.0, 0.1]), np.array([0.5, 0.5]), np.zeros(2), {}, 0)
    assert likeness.rmsd(aside, other[None])[0] > 0.3 and crest.matched(likeness, ours, theirs).tolist() == [0, 0]
    found = crest.beside(likeness, ours, theirs, frames, 200.0)
    assert found["found_of_all"] == 2 and found["measured_found"] == pytest.approx(1.0)


def test_where_two_lists_differ_most_is_a_torsion_and_no_numbering():
    """An acid all in Z beside a list all in E; equivalent hydrogens, and the hand of a methyl, say nothing."""
    acid = molecule_from_smiles("CC(=O)O", "acid", 3)
    first = acid.conformers[0]
    hydroxyl = next(a for a in np.flatnonzero(acid.numbers == 1) if np.linalg.norm(first[a] - first[3]) < 0.12)
    turned = turn(first, acid.bonds, [0, 1, 3, hydroxyl], 180.0)
    x = first + RNG.normal(0.0, 0.002, (40, *first.shape))
    frames = crest.Frames(x, np.ones(40), list(np.arange(40).reshape(4, 10)), np.arange(4), 1.0)

    def listed(*geometries, shares=(1.0,)):
        return crest.Ensemble(np.array(geometries), np.zeros(len(geometries)), np.array(shares),
                              np.zeros(len(geometries)), {}, 0)

    found = crest.apart(acid, frames, listed(turned))
    z, e = np.argsort(np.abs(found["wells_deg"]))[[0, -1]]
    assert found["torsion"] == f"O2-C1-O3-H{hydroxyl}" and found["distance"] == pytest.approx(1.0)
    assert sorted(found["measured"]) == [0.0, pytest.approx(1.0)] and found["static"][z] == found["measured"][e]
    methyl = [a for a in np.flatnonzero(acid.numbers == 1) if a != hydroxyl]
    other = -first
    other[methyl[:2]] = other[methyl[1::-1]]
    assert (same := crest.apart(acid, frames, listed(other))) is None or same["distance"] < 0.2
    half = crest.apart(acid, frames, listed(first, turned, shares=(0.5, 0.5)))
    assert half["distance"] == pytest.approx(0.5, abs=0.05)


def test_a_run_of_another_molecule_under_the_same_name_is_refused(propanol, tmp_path, monkeypatch):
    run = made_up_run(propanol[0], [1])
    run.metadata["smiles"] = "CCCO"
    monkeypatch.setattr(crest, "load_trajectory", lambda path: run)
    assert crest.run_of(tmp_path / "run.npz", "CCCO") is run
    with pytest.raises(UserError, match="is a run of CCCO, not of CC.C.O; give another --name"):
        crest.run_of(tmp_path / "run.npz", "CC(C)O")


def test_populations_heed_the_weights_of_frames(compared):
    row = compared(np.array([1.0, 1.0, 4.0, 2.0]))  # 2 : 1 : 1 counts as 2 : 4 : 2
    assert row["important"][0]["measured"] == pytest.approx(2 / 8)
    assert row["excess"][0]["measured"] == pytest.approx(2 / 8) and row["measured_found"] == pytest.approx(6 / 8)


def test_the_halves_are_chains_of_even_and_odd_start_conformers(propanol):
    """Chains of one half in one conformer, those of the other in another: the halves know it."""
    molecule = propanol[0]
    run = made_up_run(molecule, POPULATIONS)
    frames = crest.Frames.of(run, 10_000)
    start = share_replicas(molecule.conformer_energies, 8, 300.0)
    apart = np.concatenate([np.full(len(rows), start[r] % 2) for rows, r in
                            zip(frames.rows, frames.replicas, strict=True)])
    found = crest.halves(molecule, run, frames, apart)
    assert found["p"] < 0.01 and sorted(found["populations"]) == [[0.0, 1.0], [1.0, 0.0]]
    assert found["chains"] == [int((start % 2 == side).sum()) for side in (0, 1)]


def test_frames_of_each_chain_keep_their_order_and_spacing(propanol):
    run = made_up_run(propanol[0], POPULATIONS)
    frames = crest.Frames.of(run, 16)  # of 32
    assert len(frames.positions) == 16 and [len(rows) for rows in frames.rows] == [2] * 8
    assert frames.spacing_ps == 2.0 and frames.replicas.tolist() == list(range(8))
    assert (frames.positions[frames.rows[3]] == run.pos[run.replica == 3][::2]).all()


def test_the_cost_is_everything_from_the_smiles_on(propanol):
    found = crest.cost(made_up_run(propanol[0], POPULATIONS), 100.0, 2.0)
    assert found == {"cpu_h": 1.0, "crest_cpu_h": 2.0, "over_crest": 0.5}
    assert crest.cost(made_up_run(propanol[0], POPULATIONS), 100.0, None)["over_crest"] is None


def test_the_table_shows_what_was_compared(compared, propanol, tmp_path):
    row = {**compared(), **crest.cost(made_up_run(propanol[0], POPULATIONS), 100.0, 2.0)}
    write_json_compact(tmp_path / "crest.json", {"molecules": {"propanol": row}})
    text = study_tables.crest(json.loads((tmp_path / "crest.json").read_text()))
    assert "| propanol | 12 | 1.00 | 2.00 | 0.50 | 300 + 120 |" in text and "| 1 of 2 | 2 of 3 (" in text
    missed = row["important"][1]
    assert f"{100 * missed['static']:.1f} % | not found: below {100 * missed['measured_below']:.1f} % (95 %)" in text
    assert "not listed | 25.0 +- " in text and "below CREST's lowest" not in text
    assert f"propanol: the two differ most in torsion {row['apart']['torsion']}, which lies near " in text


# the figure of molecules of all sizes

PUBLISHED = {
    "cold_start": {"molecules": {"small": {"atoms": 9, "true_calls": 300, "cpu_s": 20.0},
                                 "large": {"atoms": 33, "true_calls": 3000, "cpu_s": 400.0}}},
    "exact_and_fast": {"small": {"samplers": [
        {"call_cost_s": 60.0, "seeds": [{"torsion_per_1000_calls": {"value": 700.0, "error": 1.0}}]},
        {"call_cost_s": None, "seeds": [{"torsion_per_1000_calls": {"value": v, "error": 1.0}} for v in (420, 400, 9)]},
    ]}, "older": {"metropolis_seeds": []}},
    "crest": {"molecules": {"listed": {"atoms": 37, "labels": 4000, "cpu_s_training": 800.0,
                                       "torsion_per_1000_calls": None, "cpu_h": 1.0}}}}


def test_what_grows_with_the_molecule_is_read_from_what_was_published():
    found = scaling.collect(lambda name: PUBLISHED.get(name, {}))
    assert found["small"] == {"atoms": 9, "labels": 300, "cpu_s_training": 20.0, "torsion_per_1000_calls": 400}
    assert found["large"] == {"atoms": 33, "labels": 3000, "cpu_s_training": 400.0}
    assert found["listed"] == {"atoms": 37, "labels": 4000, "cpu_s_training": 800.0, "torsion_per_1000_calls": None}
    picture = ElementTree.fromstring(scaling.svg(found))
    circles = picture.findall("{http://www.w3.org/2000/svg}circle")
    assert len(circles) == 1 + 3 + 3  # what nobody measured has no point
    labels, heights = circles[1:4], [float(c.get("cy")) for c in circles[1:4]]
    assert [float(c.get("cx")) for c in labels] == sorted(float(c.get("cx")) for c in labels)
    assert heights[0] > heights[1] > heights[2]  # up is more
    decade = (heights[0] - heights[1]) / np.log10(3000 / 300)
    assert heights[1] - heights[2] == pytest.approx(decade * np.log10(4000 / 3000), abs=0.2)
    table = study_tables.scaling({"molecules": found})
    assert table.index("| small | 9 | 400 | 300 | 20 |") < table.index("| listed | 37 | n/a | 4000 | 800 |")
    assert "not measured" in scaling.svg({"large": found["large"]})
