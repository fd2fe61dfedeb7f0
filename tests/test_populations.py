"""Populations of conformers: the right ones, with errors that cover, from chains, weights and ladders alike."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

import independent_populations
import synthetic
from conftest import molecule_from_smiles
from kstep.analysis.measure.averages import gather
from kstep.analysis.measure.conformers import assign, find_conformer_torsions
from kstep.analysis.measure.populations import _told_apart, name_of, populations
from kstep.analysis.measure.symmetry import conformer_atoms, exchanges
from kstep.analysis.measure.torsions import find_borders, find_rotamers, well_of
from kstep.analysis.measure.umbrella import gather as windows_of
from kstep.cli import main
from kstep.dihedrals import dihedrals_deg, far_side, turned, wrap_deg
from kstep.errors import UserError
from kstep.hands import find_centres
from kstep.schemas import Trajectory, complete_trajectory, load_trajectory
from kstep.units import BOLTZMANN, J_PER_KJ, KJ_PER_KCAL, kT

WELLS = np.array([180.0, 62.0, -62.0])
# of 1-propanol, made up: of the wells of C-C-C-O (rows) and C-C-O-H (columns), the same for mirror images
TRUTH = {"tt": 0.03, "t+": 0.42, "++": 0.31, "+-": 0.20, "+t": 0.04}
STATES = np.array([[TRUTH["tt"], TRUTH["t+"] / 2, TRUTH["t+"] / 2], [TRUTH["+t"] / 2, TRUTH["++"] / 2, TRUTH["+-"] / 2],
                   [TRUTH["+t"] / 2, TRUTH["+-"] / 2, TRUTH["++"] / 2]]).ravel()
CHAIN = (0, 1, 2, 3, 11)


@pytest.fixture(scope="module")
def propanol():
    return molecule_from_smiles("CCCO", "propanol", 1)


def markov(rng, n, p, stay):
    """States (n,) that stay with that probability and are drawn anew from p otherwise."""
    drawn = rng.choice(len(p), size=n, p=p)
    anew = rng.random(n) >= stay
    anew[0] = True
    return drawn[np.maximum.accumulate(np.where(anew, np.arange(n), 0))]


def as_trajectory(molecule, pos, energy, replica, step, segments, weight=(), **metadata):
    arrays = complete_trajectory(dict(
        pos=pos, vel=np.zeros_like(pos), Ekin=0 * energy, Epot=energy, Etot=energy, time_ps=0.1 * step, step=step,
        replica=replica, segment=replica, masses=molecule.masses, masses_sampler=molecule.masses,
        atom_types=molecule.numbers, bonds=molecule.bonds, weight=np.asarray(weight)))
    return Trajectory(**arrays, metadata={"molecule": molecule.name, "smiles": molecule.smiles, "method": "made up",
                                          "scheme": "plain", "segments": segments, **metadata})


def segment(replica, temperature_K=300.0, role="train"):
    return {"replica": replica, "role": role, "ensemble": "NVT", "temperature_K": temperature_K, "n_dof": 33}


def made_up(molecule, seed, *, chains, frames, stay, weighted=False, states=STATES, noise_deg=10.0, starts=None):
    """1-propanol that jumps between its nine wells; weighted: drawn flatter than that, with noisy weights beside."""
    rng = np.random.default_rng(seed)
    drawn_from = states
    if weighted:
        drawn_from = np.sqrt(states) / np.sqrt(states).sum()
    state = np.concatenate([np.full(frames, starts[r]) if starts is not None else markov(rng, frames, drawn_from, stay)
                            for r in range(chains)])
    pos = np.repeat(molecule.conformers[:1], len(state), axis=0)
    for torsion, well in zip(np.array([CHAIN[:4], CHAIN[1:]]), (state // 3, state % 3)):
        wanted = WELLS[well] + noise_deg * rng.standard_normal(len(state))
        now = dihedrals_deg(pos, torsion[None])[:, 0]
        pos = turned(pos, torsion, far_side(torsion, molecule.bonds, len(molecule)), wrap_deg(wanted - now))
    weight = (states / drawn_from)[state] * np.exp(0.5 * rng.standard_normal(len(state))) if weighted else ()
    return as_trajectory(molecule, pos, rng.standard_normal(len(state)), np.repeat(np.arange(chains), frames),
                         np.tile(np.arange(frames), chains), [segment(r) for r in range(chains)], weight)


def named(found):
    """{"t+": Conformer, ...} of propanol."""
    out = {}
    for conformer in found.conformers:
        angles = np.array(list(conformer.wells_deg.values()))
        word = "".join("t" if abs(a) > 120 else "+" if a > 0 else "-" for a in angles)
        out[min(word, word.translate(str.maketrans("+-", "-+")))] = conformer
    return out


# the numbers

def test_populations_free_energies_and_entropy_of_a_known_system(propanol):
    found = populations([made_up(propanol, 0, chains=16, frames=600, stay=0.5)])
    conformers = named(found)
    assert conformers.keys() == {min(k, k.translate(str.maketrans("+-", "-+"))) for k in TRUTH}
    assert [c.label for c in found.conformers] == list("ABCDE") and found.converged and not found.problems
    shares = [c.population for c in found.conformers]
    assert shares == sorted(shares, reverse=True) and sum(shares) + found.others["population"] == pytest.approx(1.0)
    for name, wanted in TRUTH.items():
        c = conformers[name]
        assert abs(c.population - wanted) < 4 * c.population_error < 0.06
        free = kT(300.0) * np.log(TRUTH["t+"] / wanted)
        assert abs(c.free_energy_kJ - free) <= 4 * c.free_energy_error_kJ
        assert c.free_energy_kJ == pytest.approx(kT(300.0) * np.log(found.conformers[0].population / c.population))
        assert c.free_energy_kcal == pytest.approx(c.free_energy_kJ / KJ_PER_KCAL)
        assert c.images == (1 if name == "tt" else 2)
    p = np.array([TRUTH["tt"], *(TRUTH[k] / 2 for k in TRUTH if k != "tt" for _ in "+-")])
    entropy = -BOLTZMANN * J_PER_KJ * (p * np.log(p)).sum()
    assert abs(found.entropy_J_per_mol_K - entropy) < 4 * found.entropy_error_J_per_mol_K < 0.6
    assert found.conformers[0].free_energy_error_kJ == 0 and not found.one_well and not found.never_crossed


def test_a_script_of_its_own_finds_the_same_populations(propanol, tmp_path):
    synthetic.save(tmp_path / "run.npz", made_up(propanol, 3, chains=16, frames=100, stay=0.7))
    theirs = independent_populations.populations(tmp_path / "run.npz", CHAIN)
    mine = named(populations([load_trajectory(tmp_path / "run.npz")]))
    assert mine.keys() == theirs.keys()
    for name, (population, error) in theirs.items():
        assert abs(mine[name].population - population) <= 0.3 * error
        assert mine[name].population_error == pytest.approx(error, rel=0.5)


@pytest.mark.parametrize("chains, frames, stay, weighted", [(4, 400, 0.8, False), (16, 60, 0.5, False),
                                                            (16, 100, 0.9, False), (4, 300, 0.0, True),
                                                            (16, 100, 0.8, True)])
def test_errors_cover_in_68_of_100_cases(propanol, chains, frames, stay, weighted):
    """Over 100 seeds, for populations from 0.42 down to 0.03, and for the free energy of the second conformer."""
    hits, rows = np.zeros((100, len(TRUTH) + 1)), list(TRUTH)
    for seed in range(100):
        found = named(populations([made_up(propanol, seed, chains=chains, frames=frames, stay=stay,
                                           weighted=weighted, noise_deg=8.0)], smallest=1e-6))
        for column, name in enumerate(rows):
            if name in found:
                hits[seed, column] = abs(found[name].population - TRUTH[name]) <= found[name].population_error
        apart = found["++"].free_energy_kJ - found["t+"].free_energy_kJ
        error = np.hypot(found["++"].free_energy_error_kJ, found["t+"].free_energy_error_kJ)
        hits[seed, -1] = abs(apart - kT(300.0) * np.log(TRUTH["t+"] / TRUTH["++"])) <= error
    covered = dict(zip([*rows, "free energy"], hits.sum(axis=0)))
    assert all(58 <= n <= 78 for n in covered.values()), covered


def test_unequal_chains_and_one_chain_alone_are_taken(propanol):
    run = made_up(propanol, 1, chains=3, frames=200, stay=0.5)
    kept = np.concatenate([np.arange(0, 200), np.arange(200, 260), np.arange(400, 520)])
    short = dataclasses.replace(run, **{key: getattr(run, key)[kept] for key in (
        "pos", "vel", "Ekin", "Epot", "Etot", "time_ps", "step", "replica", "segment")})
    assert populations([short]).chains == 3
    one = populations([made_up(propanol, 1, chains=1, frames=400, stay=0.5)])
    assert one.chains == 1 and 0 < one.conformers[0].population_error < 0.1


def test_a_run_is_not_counted_twice(propanol):
    """Nor one that another goes on with: its frames are no further samples."""
    def run(seed, frames=60):
        made = made_up(propanol, seed, chains=2, frames=60, stay=0.5)
        kept = np.concatenate([np.arange(frames), 60 + np.arange(frames)])
        return dataclasses.replace(made, metadata={**made.metadata, "seed": seed}, **{
            key: getattr(made, key)[kept] for key in (
                "pos", "vel", "Ekin", "Epot", "Etot", "time_ps", "step", "replica", "segment")})

    assert populations([run(1), run(2)]).chains == 4
    for runs, words in (([run(1), run(1)], "runs 1 and 2 of 2"), ([run(2), run(1), run(2, 20)], "runs 1 and 3 of 3")):
        with pytest.raises(UserError, match=f"{words} are one run of .*; give each run once"):
            populations(runs)
        with pytest.raises(UserError, match=f"{words} are one run"):
            windows_of(runs)


# what is not known is said

def test_chains_that_never_cross_are_not_converged(propanol):
    """Eight chains in two conformers: the shares are those of the starts, whatever their error bar says."""
    found = populations([made_up(propanol, 0, chains=8, frames=100, stay=0.0, starts=[1, 4] * 4)])
    assert not found.converged and found.never_crossed == ["C0-C1-C2-O3", "C1-C2-O3-H11"]
    assert any("no chain crossed between the wells of C0-C1-C2-O3" in p for p in found.problems)
    assert any("R-hat infinite" in p for p in found.problems) and any("no chain came into" in p for p in found.problems)
    assert [c.entered for c in found.conformers] == [0, 0]
    assert found.conformers[0].population_error > 0.1
    assert found.entropy_error_J_per_mol_K > 0.1  # though to first order two equal shares leave it as it is
    assert "NOT CONVERGED" in str(found).splitlines()[0]


def test_crossing_into_the_mirror_image_is_no_matter(propanol):
    """Chains that keep to gauche+ or to gauche- agree on the conformer, which they need not leave."""
    found = populations([made_up(propanol, 0, chains=8, frames=200, stay=0.0, starts=[4, 8] * 4)])
    assert len(found.conformers) == 1 and found.converged and found.conformers[0].images == 2
    assert found.entropy_J_per_mol_K == pytest.approx(BOLTZMANN * J_PER_KJ * np.log(2.0))
    assert "in one well all the time: C0-C1-C2-O3, C1-C2-O3-H11" in str(found).splitlines()[0]
    trans = populations([made_up(propanol, 0, chains=8, frames=200, stay=0.0, starts=[0] * 8)])
    assert trans.entropy_J_per_mol_K == 0.0
    assert trans.one_well == ["C0-C1-C2-O3", "C1-C2-O3-H11"] and "another may have been missed" in trans.notes[0]


def test_a_run_too_short_to_have_left_its_one_conformer_is_not_converged(propanol):
    """Its population is 1 with an error of 0 however short it was; of a molecule without torsions that is no matter."""
    run = made_up(propanol, 0, chains=4, frames=400, stay=0.0, starts=[0] * 4)
    slow = np.cumsum(np.random.default_rng(1).standard_normal(len(run.pos)))  # a random walk: a few samples
    short = populations([dataclasses.replace(run, Epot=slow, Etot=slow)])
    assert populations([run]).converged and not short.converged
    assert "too few to have seen another well of C0-C1-C2-O3, C1-C2-O3-H11" in short.problems[0]
    water = molecule_from_smiles("O", "water", 1)
    pos = water.conformers[:1] + 0.001 * np.random.default_rng(0).standard_normal((16, 3, 3))
    few = as_trajectory(water, pos, np.repeat([0.0, 1.0], 8), np.repeat(np.arange(2), 8), np.tile(np.arange(8), 2),
                        [segment(r) for r in range(2)])
    assert populations([few]).converged


def test_a_ring_that_puckers_to_both_sides_has_been_seen_there():
    """Cyclobutanol, its puckers made flat: one wide well; that of a run that knew one side alone is named."""
    molecule = molecule_from_smiles("OC1CCC1", "cyclobutanol", 6)
    rng, n, x = np.random.default_rng(0), 200, molecule.conformers - molecule.conformers[:, 1:2]
    up, (pucker, hand) = x[0], pucker_and_hand(x[0])
    down = next(other for other in x if pucker_and_hand(other) == (-pucker, hand))
    down = down @ Rotation.align_vectors(up, down)[0].as_matrix().T

    def run(shares):
        pos = up + shares[:, None, None] * (down - up) + 0.001 * rng.standard_normal((4 * n, 13, 3))
        return as_trajectory(molecule, pos, rng.standard_normal(4 * n), np.repeat(np.arange(4), n),
                             np.tile(np.arange(n), 4), [segment(r) for r in range(4)])

    both, one = (populations([run(shares)]) for shares in (rng.choice([0.25, 0.75], 4 * n), np.full(4 * n, 0.2)))
    assert not [label for label in both.one_well if label.startswith("C")]
    assert len([label for label in one.one_well if label.startswith("C")]) == 4


def pucker_and_hand(x):
    """Signs of a ring torsion of cyclobutanol and of the volume at its substituted carbon."""
    return (int(np.sign(dihedrals_deg(x[None], np.array([[4, 1, 2, 3]]))[0, 0])),
            int(np.sign(np.linalg.det(x[[0, 2, 4]] - x[1]))))


def test_entries_are_counted(propanol):
    run = made_up(propanol, 5, chains=4, frames=300, stay=0.9, noise_deg=5.0)
    found = populations([run])
    chain = [propanol_words(run)[run.replica == r] for r in range(4)]
    for name, conformer in named(found).items():
        assert conformer.entered == sum(((c[1:] == name) & (c[:-1] != name)).sum() for c in chain) > 0


def propanol_words(run):
    i, j, k, last, h = CHAIN
    names = np.char.add(independent_populations.well(independent_populations.torsion(run.pos, i, j, k, last)),
                        independent_populations.well(independent_populations.torsion(run.pos, j, k, last, h)))
    return np.array([min(n, n.translate(str.maketrans("+-", "-+"))) for n in names])


def test_a_representative_is_of_its_conformer(propanol):
    run = made_up(propanol, 2, chains=8, frames=100, stay=0.3)
    words = propanol_words(run)
    for name, conformer in named(populations([run])).items():
        assert words[conformer.frame] == name
        angles = np.abs(dihedrals_deg(run.pos[[conformer.frame]], np.array([CHAIN[:4], CHAIN[1:]])))[0]
        assert np.abs(wrap_deg(angles - np.abs(list(conformer.wells_deg.values())))).max() < 8.0


def test_rare_conformers_are_summed_up(propanol):
    found = populations([made_up(propanol, 0, chains=16, frames=200, stay=0.0)], smallest=0.1)
    assert len(found.conformers) == 3 and found.others["count"] == 2
    assert found.others["population"] == pytest.approx(0.07, abs=4 * found.others["error"])
    assert "2 rarer conformers" in str(found)


def test_a_rare_conformer_is_noted_and_no_reason_to_doubt_the_others(propanol):
    """1 % of the frames, all in one chain that began there and left: no chain agrees with that one, by R-hat."""
    run = made_up(propanol, 3, chains=8, frames=400, stay=0.0, states=np.eye(9)[[1, 2, 4, 8]].mean(axis=0))
    seen_once = made_up(propanol, 4, chains=8, frames=400, stay=0.0, starts=[5] * 8).pos[:32]
    rare = dataclasses.replace(run, pos=np.concatenate([seen_once, run.pos[32:]]))
    found = populations([rare])
    assert found.converged and len(found.common) == 2 and len(found.conformers) == 3
    third = found.conformers[2]
    assert third.population == pytest.approx(0.01)
    assert third.r_hat > 1.05 and found.largest_error == third.population_error < 0.02
    assert any("below 2 %" in note and "C (" in note for note in found.notes)
    more = dataclasses.replace(run, pos=np.concatenate([np.tile(seen_once, (3, 1, 1)), run.pos[96:]]))
    assert any("do not agree on conformer C" in problem for problem in populations([more]).problems)  # of 3 %


@pytest.mark.parametrize("factor", [0.95, 1.05])
def test_errors_are_held_to_what_the_run_aimed_at(propanol, factor):
    run = made_up(propanol, 0, chains=8, frames=200, stay=0.5)
    error = populations([run]).largest_error
    assert populations([run]).converged
    run.metadata["config"] = {"population_error": factor * error}
    found = populations([run])
    assert found.converged == (factor > 1)
    if factor < 1:
        assert f"to +- {error:.2g} alone, not {factor * error:g}" in found.problems[0]


def test_a_network_s_ensemble_is_named_and_not_reweighted(propanol):
    run = made_up(propanol, 0, chains=8, frames=100, stay=0.0)
    run.metadata["scheme_traits"] = {"head": "energy", "ensemble": "network"}
    found = populations([run])
    assert found.ensemble == "network" and not found.converged and "network's potential" in str(found)
    with pytest.raises(UserError, match="follows the network"):
        populations([run], 350.0)


# which geometries are one conformer

@pytest.mark.parametrize("smiles", ["CCCC", "CC1CCCCC1", "CC(C)CO", "NCCN", "CC(C)(C)CO", "OCc1ccccc1", "C[C@H](O)CC",
                                    "C1CCNCC1", "CC(C)C(C)C", "C=CC=C", "OCC(O)CO", "CS(=O)CC", "C[NH2+]CC",
                                    "O[C@H](C(=O)O)[C@@H](O)C(=O)O", "CC=C=CCO", "CC(C)=C=C(C)CO"])
def test_relabelled_and_mirrored_geometries_are_the_same_conformer(smiles):
    """Any exchange of equivalent atoms, hydrogens too, by RDKit's own matches; the mirror image of what is achiral."""
    from rdkit import Chem
    from rdkit.Chem import AllChem, Descriptors  # noqa: F401

    molecule = molecule_from_smiles(smiles, "m", 12)
    graph = Chem.AddHs(Chem.MolFromSmiles(smiles))
    chiral = Chem.FindMolChiralCenters(graph, useLegacyImplementation=False)
    matches = graph.GetSubstructMatches(graph, uniquify=False, maxMatches=500, useChirality=bool(chiral))
    rng = np.random.default_rng(0)
    rows, origin = [], []
    for number, x in enumerate(molecule.conformers):
        for copy in range(5):
            relabelled = x[list(matches[rng.integers(len(matches))])]
            turn = np.linalg.qr(rng.standard_normal((3, 3)))[0]
            turn *= np.sign(np.linalg.det(turn)) * (-1.0 if not chiral and copy % 2 else 1.0)
            rows.append(relabelled @ turn)
            origin.append(number)
    found = conformers_of(molecule, np.array(rows))
    for number in range(len(molecule.conformers)):
        assert len(set(found[np.array(origin) == number])) == 1


def conformers_of(molecule, positions):
    torsions, labels, _ = find_conformer_torsions(molecule.numbers, molecule.bonds)
    atoms = conformer_atoms(molecule.numbers, molecule.bonds, torsions)
    return assign(positions, [np.arange(len(positions))], np.ones(len(positions)), torsions, labels,
                  find_centres(molecule.numbers, molecule.bonds, atoms),
                  exchanges(molecule.numbers, molecule.bonds, atoms)).conformer


@pytest.mark.parametrize("smiles, wanted", [("CCCC", 2), ("CCCCC", 3), ("CCCO", 5), ("NCCN", 9), ("CC(C)CO", 5),
                                            ("CNC=O", 1), ("CCC(=O)Cl", 2), ("C1CCNCC1", 4), ("CC=C=C(F)CO", 4),
                                            ("C=C=CCO", 2), ("CC(C)=C=CCO", 2)])
def test_minima_of_different_energy_are_different_conformers(smiles, wanted):
    """As many as there are minima by energy alone, of a force field and many starts."""
    from rdkit import Chem
    from rdkit.Chem import AllChem

    graph = Chem.AddHs(Chem.MolFromSmiles(smiles))
    ids = list(AllChem.EmbedMultipleConfs(graph, 40, randomSeed=7))
    energies = [e for _, e in AllChem.MMFFOptimizeMoleculeConfs(graph, maxIters=5000)]
    molecule = molecule_from_smiles(smiles, "m", 1)
    found = conformers_of(molecule, np.array([0.1 * graph.GetConformer(i).GetPositions() for i in ids]))
    assert len(np.unique(found)) == wanted
    for conformer in np.unique(found):
        assert np.ptp(np.array(energies)[found == conformer]) < 0.01  # kcal/mol


def test_a_well_ends_where_the_density_is_lowest_and_not_half_way():
    rng = np.random.default_rng(0)

    def found(*angles):
        histogram = np.histogram(wrap_deg(np.concatenate(angles)), 360, (-180.0, 180.0))[0]
        return find_rotamers(histogram), find_borders(histogram, find_rotamers(histogram))

    shoulder = [rng.normal(-30, 15, 6000), rng.normal(-90, 30, 3000), rng.normal(145, 10, 600)]  # psi in water
    centres, borders = found(*shoulder)
    assert len(centres) == 2 and borders % 360 == pytest.approx([180.0, 70.0], abs=20.0)  # half-way: 238 and 58
    inside = [np.mean(well_of(x, borders) == n) for x, n in zip(shoulder, (0, 0, 1))]
    assert inside == pytest.approx([1.0, 1.0, 1.0], abs=0.03)
    centres, borders = found(rng.normal(0, 8, 900), rng.normal(170, 8, 100))  # nothing in between
    assert len(centres) == 2 and np.sort(borders) == pytest.approx([-95.0, 85.0], abs=15.0)
    assert well_of(np.array([170.0, -175.0, 3.0, -3.0]), borders).tolist() == [1, 1, 0, 0]


def test_a_frame_between_two_wells_is_in_neither_of_those_to_be_crossed():
    def told_apart(*angles):
        return _told_apart(SimpleNamespace(labels=["T"], angles=np.array(angles)[:, None],
                                           wells=[np.array([-88.0, 88.0])]))

    assert told_apart(-88.0, -70.0, -5.0, 5.0) == [] and told_apart(-88.0, -5.0, 70.0) == ["T"]


def test_a_flat_nitrogen_has_no_sides():
    """Glycine's: where phi is nearly 180 degrees the amide's hydrogen is a little above the plane or below it."""
    from rdkit import Chem
    from rdkit.Chem import AllChem, rdMolTransforms
    from scipy.spatial.transform import Rotation

    graph = Chem.AddHs(Chem.MolFromSmiles("CC(=O)NCC(=O)NC"))
    AllChem.EmbedMolecule(graph, randomSeed=1)
    AllChem.MMFFOptimizeMolecule(graph)
    shape, rng, rows = graph.GetConformer(), np.random.default_rng(0), []
    for phi in (*rng.normal(85, 15, 200), *rng.uniform(110, 180, 100)):
        rdMolTransforms.SetDihedralDeg(shape, 1, 3, 4, 5, phi)
        x = shape.GetPositions()
        lifted = Rotation.from_rotvec(np.radians(rng.normal(0, 12)) * (x[4] - x[3]) / np.linalg.norm(x[4] - x[3]))
        x[12] = x[3] + lifted.apply(x[12] - x[3])
        rows += [0.1 * x, 0.1 * x * [1.0, 1.0, -1.0]]
    molecule = molecule_from_smiles("CC(=O)NCC(=O)NC", "m", 1)
    assert len(np.unique(conformers_of(molecule, np.array(rows)))) == 1


def test_axial_and_equatorial_are_two_conformers_and_enantiomers_are_not_merged():
    """Ring torsions alone do not tell them apart: turned round, those of one are those of the other."""
    molecule = molecule_from_smiles("CC1CCCCC1", "m", 30)
    out = np.abs(dihedrals_deg(molecule.conformers, np.array([[0, 1, 2, 3]])))[:, 0] > 120
    found = conformers_of(molecule, molecule.conformers)
    assert 0 < out.sum() < len(out) and not set(found[out]) & set(found[~out])
    alcohol = molecule_from_smiles("C[C@H](O)CC", "m", 30)
    both = conformers_of(alcohol, np.concatenate([alcohol.conformers, alcohol.conformers * [1.0, 1.0, -1.0]]))
    assert np.array_equal(*np.split(both, 2))  # joined where a file holds both hands
    gauche = dihedrals_deg(alcohol.conformers, np.array([[0, 1, 3, 4]]))[:, 0]
    one = conformers_of(alcohol, alcohol.conformers)
    assert not set(one[(gauche > 30) & (gauche < 90)]) & set(one[(gauche < -30) & (gauche > -90)])


def one_sided(molecule):
    """1-propanol whose O-H points to one side four times as often as to the other, as in a chiral place."""
    sides = np.zeros(9)
    sides[1:3] = 0.8, 0.2
    return made_up(molecule, 7, chains=8, frames=300, stay=0.3, states=sides)


def in_chiral_surroundings(run):
    """The run with one geometry of fluorochlorobromomethane beside it."""
    other = molecule_from_smiles("F[C@H](Cl)Br", "other", 1)
    n, own = len(run.pos), run.pos.shape[1]
    around = np.repeat(other.conformers[:1] + 1.0, n, axis=0)
    return dataclasses.replace(
        run, pos=np.concatenate([run.pos, around], axis=1), vel=np.zeros((n, own + len(other), 3)),
        masses=np.concatenate([run.masses, other.masses]),
        masses_sampler=np.concatenate([run.masses_sampler, other.masses]),
        atom_types=np.concatenate([run.atom_types, other.numbers]),
        bonds=np.concatenate([run.bonds, other.bonds + own]))


@pytest.mark.parametrize("place", ["alone", "linked", "beside a stereocentre"])
def test_mirror_images_of_a_region_are_one_conformer_where_nothing_around_it_has_a_hand(propanol, place):
    run = one_sided(propanol)
    if place != "alone":
        run.metadata["qm_atoms"] = list(range(len(propanol)))
    if place == "linked":
        run.metadata["link_hosts"] = [0]
    found = populations([run if place != "beside a stereocentre" else in_chiral_surroundings(run)])
    shares = [c.population for c in found.conformers]
    if place == "alone":
        assert shares == [1.0] and found.conformers[0].images == 2
        return
    assert shares == pytest.approx([0.8, 0.2], abs=0.05) and {c.images for c in found.conformers} == {1}
    wanted = -BOLTZMANN * J_PER_KJ * sum(p * np.log(p) for p in shares)
    assert found.entropy_J_per_mol_K == pytest.approx(wanted)
    assert any("mirror images" in note for note in found.notes)


def test_labels_go_from_a_to_z_and_on():
    assert [name_of(n) for n in (0, 25, 26, 27, 701, 702)] == ["A", "Z", "AA", "AB", "ZZ", "AAA"]


# ladders and temperatures

GAP_KJ, DEGENERACY = 6.0, 3.0  # of a made-up second state above the first, "tt" below; energies add a bath of six terms


def truth_at(temperature_K, gap_kJ=GAP_KJ):
    weight = DEGENERACY * np.exp(-gap_kJ / kT(temperature_K))
    return weight / (1.0 + weight)


def tempered(molecule, seed, temperatures_K, *, ladders=2, frames=400, stay=0.8, as_ladder=True, held_kJ=0.0):
    """States "tt" and, with energy GAP_KJ and DEGENERACY, "t+"; exact at every rung.  held_kJ: of a restraint, in "tt".
    """
    rng = np.random.default_rng(seed)
    rungs = np.tile(temperatures_K, ladders)
    state, energy = [], []
    for T in rungs:
        p = truth_at(T, GAP_KJ - held_kJ)
        state.append(np.array([0, 1])[markov(rng, frames, [1 - p, p], stay)])
        energy.append(GAP_KJ * state[-1] + 0.5 * kT(T) * (rng.standard_normal((frames, 6))**2).sum(axis=1))
    base = made_up(molecule, seed, chains=1, frames=2, stay=0.0, noise_deg=0.0, starts=[0]).pos[0]
    torsion = np.array(CHAIN[1:])
    pos = np.repeat(base[None], len(rungs) * frames, axis=0)
    turn = np.where(np.concatenate(state) == 1, WELLS[1] - 180.0, 0.0) + 3.0 * rng.standard_normal(len(pos))
    pos = turned(pos, torsion, far_side(torsion, molecule.bonds, len(molecule)), turn)
    segments = [segment(r, float(T), "train" if T == temperatures_K[0] or not as_ladder else "hot")
                for r, T in enumerate(rungs)]
    config = {"tempering_K": list(temperatures_K)} if as_ladder else {}
    run = as_trajectory(molecule, pos, np.concatenate(energy), np.repeat(np.arange(len(rungs)), frames),
                        np.tile(np.arange(frames), len(rungs)), segments, config=config)
    if not held_kJ:
        return run
    restraint = {"kind": "distance", "atoms": [0, 1], "centre": 0.15, "k": 1.0}
    return dataclasses.replace(run, bias=held_kJ * (np.concatenate(state) == 0),
                               metadata={**run.metadata, "restraints": [restraint]})


def second(found):
    return next((c for c in found.conformers if min(map(abs, c.wells_deg.values())) < 120), None)


@pytest.mark.parametrize("temperature_K", [None, 350.0, 450.0])
def test_a_ladder_covers_at_every_temperature(propanol, temperature_K):
    hits, errors, deviations = 0, [], []
    for seed in range(100):
        run = tempered(propanol, seed, (300.0, 400.0, 550.0), frames=200, stay=0.6)
        c = second(populations([run], temperature_K))
        deviations.append(c.population - truth_at(temperature_K or 300.0))
        errors.append(c.population_error)
        hits += abs(deviations[-1]) <= errors[-1]
    assert 58 <= hits <= 78 and np.mean(errors) == pytest.approx(np.std(deviations), rel=0.25)
    assert abs(np.mean(deviations)) < 3 * np.std(deviations) / 10


def test_hot_rungs_make_errors_smaller_and_pymbar_agrees(propanol):
    from pymbar import MBAR

    run = tempered(propanol, 0, (300.0, 400.0, 550.0), stay=0.0)
    cold = dataclasses.replace(run, metadata={**run.metadata, "config": {}})
    with_all, alone = second(populations([run])), second(populations([cold]))
    assert with_all.population_error < 0.8 * alone.population_error
    ensemble = gather([run])
    order = np.argsort(ensemble.rung, kind="stable")
    u = run.Epot[ensemble.frames][order] / kT(ensemble.rungs_K)[:, None]
    inside = propanol_words(run)[ensemble.frames][order] == "t+"
    wanted = MBAR(u, np.bincount(ensemble.rung)).compute_expectations(inside.astype(float))
    assert with_all.population == pytest.approx(wanted["mu"][0], abs=1e-6)
    assert with_all.population_error == pytest.approx(wanted["sigma"][0], rel=0.1)  # independent frames here
    away = ensemble.weight[:, None] * (propanol_words(run)[ensemble.frames] == "t+")[:, None]
    away -= ensemble.weight[:, None] * with_all.population
    changes = ensemble._centred(away) + ensemble._by_free_energies(away)  # of independent frames: squares add up
    assert np.sqrt((changes**2).sum()) == pytest.approx(wanted["sigma"][0], rel=0.015)


@pytest.mark.parametrize("as_ladder", [True, False])
def test_rungs_and_runs_under_a_restraint_are_joined_without_it(propanol, as_ladder):
    """Each rung sampled U + W at its temperature; what is asked is U alone."""
    temperatures_K = (300.0, 400.0, 550.0)
    if as_ladder:
        runs = [tempered(propanol, 3, temperatures_K, ladders=4, frames=500, stay=0.0, held_kJ=4.0)]
    else:
        runs = [tempered(propanol, n, (T,), ladders=4, frames=500, stay=0.0, as_ladder=False, held_kJ=4.0)
                for n, T in enumerate(temperatures_K)]
    for temperature_K in (300.0, 350.0):
        c = second(populations(runs, temperature_K))
        assert abs(c.population - truth_at(temperature_K)) < 3 * c.population_error < 0.05
        assert truth_at(temperature_K, GAP_KJ - 4.0) - c.population > 0.2  # what the frames show


def test_one_temperature_is_reweighted_to_another(propanol):
    run = tempered(propanol, 0, (300.0,), ladders=8, frames=2000, stay=0.0)
    c = second(populations([run], 330.0))
    assert abs(c.population - truth_at(330.0)) < 3 * c.population_error < 0.03
    assert truth_at(330.0) - truth_at(300.0) > 3 * c.population_error  # it would be seen if nothing were done
    far = populations([run], 1500.0)
    assert not far.converged and any("weights say" in problem and "sample at that temperature" in problem
                                     for problem in far.problems)


def test_runs_at_two_temperatures_are_joined_by_mbar(propanol):
    runs = [tempered(propanol, n, (T,), ladders=4, frames=1000, stay=0.0, as_ladder=False)
            for n, T in enumerate((300.0, 360.0))]
    with pytest.raises(UserError, match=r"at 300, 360 K; say at which temperature"):
        populations(runs)
    found = populations(runs, 330.0)
    assert found.rungs_K == [300.0, 360.0] and found.chains == 8
    assert abs(second(found).population - truth_at(330.0)) < 3 * second(found).population_error < 0.03
    weighted = made_up(propanol, 0, chains=4, frames=1000, stay=0.0, weighted=True)
    with pytest.raises(UserError, match="weights of their own"):
        populations([runs[1], weighted], 300.0)


def test_what_differs_is_not_joined(propanol):
    run = made_up(propanol, 0, chains=4, frames=50, stay=0.0)
    other = dataclasses.replace(run, metadata={**run.metadata, "method": "another"})
    with pytest.raises(UserError, match="two energy surfaces"):
        populations([run, other])
    singlet, triplet = (dataclasses.replace(run, metadata={**run.metadata, "multiplicity": m}) for m in (1, 3))
    with pytest.raises(UserError, match="multiplicity 1 and one of multiplicity 3 cannot be joined"):
        populations([singlet, triplet])
    left, right, unnamed = (dataclasses.replace(run, metadata={**run.metadata, "smiles": smiles}) for smiles in (
        "C[C@H](O)F", "C[C@@H](O)F", "CC(O)F"))
    with pytest.raises(UserError, match="two stereoisomers"):
        populations([left, right])
    assert populations([left, unnamed]).chains == 8  # which contradict each other in nothing
    with pytest.raises(UserError, match="atoms or bonds differ"):
        populations([run, synthetic.ethanol(frames=50)])
    with pytest.raises(UserError, match="no production frames"):
        populations([dataclasses.replace(run, metadata={**run.metadata, "segments": [
            segment(r, role="equil") for r in range(4)]})])


# the command, and the run that ends with it

def test_the_command_prints_the_table_and_writes_it(propanol, tmp_path, capsys):
    run = made_up(propanol, 0, chains=16, frames=200, stay=0.0)
    synthetic.save(tmp_path / "a.npz", run)
    assert main(["populations", str(tmp_path / "a.npz"), "--out", str(tmp_path / "p.json")]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("propanol, made up at 300 K: 5 conformers") and shown[0].endswith("; converged")
    written = json.loads((tmp_path / "p.json").read_text())
    assert [c["label"] for c in written["conformers"]] == list("ABCDE")
    assert written == json.loads(json.dumps(populations([run]).as_dict()))
    assert f"{written['conformers'][1]['population']:.3f}" in shown[4]


@pytest.mark.parametrize("words, answer", [
    (["none.npz"], "none.npz does not exist"),
    (["a.npz", "--temperature", "0"], "0 is not a number > 0"),
    (["a.npz", "--relax", "--config", "qm"], "the run is of made up and the physics given is GFN2-xTB"),
    (["a.npz", "--out", "a.npz/x.json"], "a file is there, where a folder"),
    (["a.npz", "--out", "a.npz"], "the run a.npz would be overwritten"),
])
def test_a_mistake_is_one_sentence(propanol, tmp_path, monkeypatch, capsys, words, answer):
    monkeypatch.chdir(tmp_path)
    synthetic.save("a.npz", made_up(propanol, 0, chains=4, frames=20, stay=0.0))
    try:
        code = main(["populations", *words])
    except SystemExit as ended:
        code = ended.code
    err = capsys.readouterr().err.strip()
    assert code == 2 and answer in err and "Traceback" not in err


def test_a_sampling_run_ends_with_its_populations(tmp_path, caplog):
    import kstep

    with caplog.at_level("INFO", logger="kstep"):
        run = kstep.sample("CCO", "qm_fast", scheme="plain", out=tmp_path / "ethanol.npz", steps=12, burn_in_steps=0,
                           replicas=2, workers=1, device="cpu", save_interval_steps=1)
    assert "populations\nethanol" in caplog.text or "populations\nC2H6O" in caplog.text
    stored, again = run.metadata["populations"], run.populations()
    assert stored == json.loads(json.dumps(again.as_dict())) == json.loads(json.dumps(kstep.populations(run).as_dict()))
    assert stored["frames"] == 24 and stored["chains"] == 2 and not stored["conformers"][0]["relaxed"]


def test_representatives_are_relaxed_on_the_truth(tmp_path):
    """trans and gauche ethanol at GFN2-xTB: the same minima as SciPy's optimiser finds, which has another way there."""
    from scipy.optimize import minimize

    import kstep
    from kstep.stages.physics import TruePhysics, load_physics
    from kstep.stages.relaxation import FORCE_TOLERANCE

    molecule = molecule_from_smiles("CCO", "ethanol", 1)
    torsion, STIFF = np.array([0, 1, 2, 8]), 800.0  # root of a bond's curvature: so scaled, SciPy's first step is fair
    side, x = far_side(torsion, molecule.bonds, 9), molecule.conformers[:1]
    now = dihedrals_deg(x, torsion[None])[0, 0]
    rng = np.random.default_rng(0)
    state = rng.integers(0, 2, 60)
    pos = turned(np.repeat(x, 60, axis=0), torsion, side, np.where(state, 60.0, 180.0) - now + rng.normal(0, 5, 60))
    run = as_trajectory(molecule, pos, np.zeros(60), np.repeat([0, 1, 2], 20), np.tile(np.arange(20), 3),
                        [segment(r) for r in range(3)])
    run.metadata["method"] = "GFN2-xTB"
    synthetic.save(tmp_path / "ethanol.npz", run)
    found = kstep.populations(tmp_path / "ethanol.npz", relax="qm")
    truth = TruePhysics(molecule, load_physics("configs/qm.yaml")).spec().build()
    for c in found.conformers:
        assert c.relaxed["converged"] and c.relaxed["kept"]
        y = np.array(c.relaxed["positions_nm"])
        energy, forces = truth.energy_and_forces(y)
        assert np.linalg.norm(forces, axis=1).max() <= 1.1 * FORCE_TOLERANCE
        assert energy == pytest.approx(c.relaxed["energy_kJ"], abs=0.01)

        def ask(z):
            energy, forces = truth.energy_and_forces(z.reshape(-1, 3) / STIFF)
            return energy, -forces.ravel() / STIFF

        other = minimize(ask, STIFF * run.pos[c.frame].ravel(), jac=True, method="BFGS", options={"gtol": 5 / STIFF})
        assert energy == pytest.approx(other.fun, abs=0.1)
    calls = sum(c.relaxed["true_calls"] for c in found.conformers)
    assert any(note.startswith(f"{calls} true calls") for note in found.notes)
    assert found.conformers[0].relaxed["relative_energy_kJ"] == 0.0
    assert 0.1 < abs(found.conformers[1].relaxed["relative_energy_kJ"]) < 10.0
