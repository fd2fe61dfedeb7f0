"""How many moves a true call is worth: the arithmetic where the answer is known, and trials on networks that are."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from conftest import BondPotential, ForceNetwork
from kstep.runs import exploration as ex
from kstep.runs.network_dynamics import Carrier
from kstep.schemes.ladder import rungs_between
from kstep.topology import find_ring_torsions, find_rotatable_torsions
from kstep.units import kT


def trial(moves_per_sample, cpu_s_per_move=1e-3, rungs=(300.0,)):
    return ex.Trial(rungs, 100, moves_per_sample, "energy", cpu_s_per_move, ())


@pytest.mark.parametrize("acceptance", [1.0, 0.7])
def test_samples_per_call_are_those_of_a_chain_that_forgets_exponentially(acceptance):
    """A first-order chain, refused at random: its statistical inefficiency, summed from the definition."""
    g, n_moves = 20.0, 8
    c = ((g - 1) / (g + 1)) ** n_moves
    lag_one = 1 - acceptance + acceptance * c
    inefficiency = 1 + 2 * sum(lag_one**t for t in range(1, 2000))
    assert ex.samples_per_call(g, n_moves, acceptance) == pytest.approx(1 / inefficiency, rel=1e-9)
    assert ex.samples_per_call(g, 1, 1.0) == pytest.approx(1 / g)
    assert ex.samples_per_call(g, 10_000, acceptance) == pytest.approx(acceptance / (2 - acceptance))


def test_a_dear_call_buys_more_moves_and_a_ladder_must_pay():
    slow, ladder = trial(200.0), trial(30.0, 4e-3, (300.0, 400.0, 530.0, 700.0))
    cheap, few, _ = ex.cheapest([slow, ladder], 1e-3, 0.9)
    dear, many, cost = ex.cheapest([slow, ladder], 60.0, 0.9)
    assert cheap is ladder and dear is ladder and many >= 4 * few
    assert cost == pytest.approx((60.0 + many * 4e-3) / ex.samples_per_call(30.0, many, 0.9))
    assert ex.cheapest([slow, trial(190.0, 4e-3, (300.0, 600.0))], 1e-3, 0.9)[0] is slow
    assert ex.cheapest([slow], 1e-3, 0.9, moves=(7,))[1] == 7


def test_rungs_agree_as_harmonic_modes_do():
    """Neighbours of a ladder over 3N - 6 harmonic modes: energies are Gamma distributed, the exchange is drawn."""
    rng, n_atoms = np.random.default_rng(0), 21
    rungs = rungs_between(300.0, 700.0, n_atoms)
    assert rungs[0] == 300.0 and rungs[-1] == 700.0
    half = (3 * n_atoms - 6) / 2
    for low, high in itertools.pairwise(rungs):
        u_low, u_high = (kT(t) * rng.gamma(half, size=200_000) for t in (low, high))
        agreed = np.exp(np.minimum(0.0, (1 / kT(low) - 1 / kT(high)) * (u_low - u_high))).mean()
        assert 0.2 < agreed < 0.4
    assert rungs_between(300.0, 300.0, 9) == (300.0,)


def test_a_ladder_with_neighbours_that_never_agree_gets_a_rung_more():
    far = ex.Trial((300.0, 700.0), 100, 9.0, "energy", 1e-3, (0.01,))
    near = ex.Trial((300.0, 350.0, 408.0), 100, 9.0, "energy", 1e-3, (0.8, 0.8))
    assert ex.other_rungs(far) == [pytest.approx((300.0, 458.3, 700.0), abs=0.1)]
    assert ex.other_rungs(near) == [(300.0, 408.0)] and ex.other_rungs(trial(9.0)) == []


def harmonic_network(ethanol):
    """Springs on every bond of ethanol, as a network."""
    x0 = ethanol.conformers[0]
    lengths = np.linalg.norm(x0[ethanol.bonds[:, 0]] - x0[ethanol.bonds[:, 1]], axis=1)
    potential = BondPotential(ethanol.masses, ethanol.bonds, lambda r: 0.5 * 1e5 * (r - lengths) ** 2,
                              lambda r: 1e5 * (r - lengths))
    network = ForceNetwork(lambda x: potential.batch(x)[1])
    network.energy_and_forces, network.metadata = potential.batch, {}
    return network


def test_trials_choose_and_write_down_what_is_open(ethanol):
    network, rng = harmonic_network(ethanol), np.random.default_rng(1)
    explorer = ex.Explorer(ethanol, network, Carrier(network), ethanol.masses, 1e-3, rng)
    x = np.repeat(ethanol.conformers[:1], 8, axis=0)
    asked = dict(temperature_K=300.0, shortest_mean_fs=20.0, n_moves=None, k_steps=None, network_ladder_K=None,
                 burn_in_steps=None)
    cheap, dear = (ex.choose_moves(explorer, x, cpu_s_per_call=cost, **asked) for cost in (1e-4, 60.0))
    for report in (cheap, dear):
        lengths = {t["move_steps"] for t in report["trials"]}
        assert report["k_steps"] / report["moves"] in lengths and lengths == {10, 20, 40}
        assert report["network_ladder_K"][0] == 300.0 and 4 <= report["burn_in_steps"] <= 20
    assert dear["moves"] > cheap["moves"]
    given = ex.choose_moves(explorer, x, cpu_s_per_call=1e-4, temperature_K=300.0, shortest_mean_fs=20.0, n_moves=3,
                            k_steps=90, network_ladder_K=[300.0], burn_in_steps=7)
    assert (given["moves"], given["k_steps"], given["network_ladder_K"], given["burn_in_steps"]) == (3, 90, [300.0], 7)
    assert len(given["trials"]) == 1


def explorer_of_butane(monkeypatch) -> tuple[ex.Explorer, np.ndarray]:
    """In a force field; and positions (8,N,3) in all its wells, the best one first.

    The clock is work done, so that a trial is as long on any machine.
    """
    from kstep.molecules.prepare import molecule_from_smiles
    from kstep.study.advice.stand_ins import ForceField

    class Counted(ForceField):
        def __call__(self, positions, *how):
            self.cpu_s += len(positions) / 8
            return super().__call__(positions, *how)

    molecule, system_xml = molecule_from_smiles("CCCC", "butane", seed=0)
    field = Counted(system_xml, len(molecule))
    monkeypatch.setattr(ex, "time", SimpleNamespace(process_time=lambda: 0.0))
    return (ex.Explorer(molecule, field, field, molecule.masses, 1e-3, np.random.default_rng(2)),
            molecule.conformers[np.arange(8) % len(molecule.conformers)])


def test_a_trial_that_never_left_a_well_is_not_the_fastest(monkeypatch):
    """Chains that stay anti look fast by their energies; the ladder saw gauche, so that it counts for them too."""
    explorer, x = explorer_of_butane(monkeypatch)
    monkeypatch.setattr(ex, "TRIAL_CPU_S", 100.0)
    anti = np.repeat(x[:1], 8, axis=0)
    alone, ladder = explorer.best(anti, 100, [(300.0,), (300.0, 450.0, 700.0)], free_ladder=False, free_length=False)
    assert alone.slowest == ladder.slowest != "energy" and alone.never_crossed == (alone.slowest,)
    assert alone.moves_per_sample > 10 * ladder.moves_per_sample


def test_a_trial_sees_how_slow_a_torsion_is(monkeypatch):
    """Butane in a force field from all its wells: a ladder makes the slowest torsion faster per move."""
    explorer, x = explorer_of_butane(monkeypatch)
    alone, _ = explorer.trial(x, (300.0,), 100, enough=np.inf, most_cpu_s=100)
    ladder, _ = explorer.trial(x, (300.0, 450.0, 700.0), 100, enough=np.inf, most_cpu_s=300)
    assert alone.slowest == ladder.slowest != "energy"
    assert 4 * ladder.moves_per_sample < alone.moves_per_sample
    assert all(0.05 < share < 0.9 for share in ladder.agreement) and ladder.cpu_s_per_move > 2 * alone.cpu_s_per_move


@pytest.mark.parametrize(("smiles", "n_torsions"), [
    ("C1CCCCC1", 6), ("CC(=O)Oc1ccccc1C(=O)O", 0), ("C1CCNCC1", 6), ("c1ccoc1", 0), ("C1CC1", 0), ("C1=CCCCC1", 3)])
def test_rings_that_pucker_have_torsions_to_follow(smiles, n_torsions):
    """Each lies on four neighbours in one ring; at a chair it stands near 55 degrees, not at 0 or 180."""
    from kstep.dihedrals import dihedrals_deg
    from kstep.molecules.prepare import molecule_from_smiles

    molecule, _ = molecule_from_smiles(smiles, "ring", seed=0)
    torsions = find_ring_torsions(molecule.numbers, molecule.bonds)
    assert len(torsions) == n_torsions
    bonded = {tuple(bond) for bond in molecule.bonds.tolist()}
    for torsion in torsions.tolist():
        assert len(set(torsion)) == 4
        assert all((min(pair), max(pair)) in bonded for pair in itertools.pairwise(torsion))
    if smiles == "C1CCCCC1":
        angles = np.abs(dihedrals_deg(molecule.conformers[:1], torsions))
        assert ((angles > 45) & (angles < 65)).all()
        assert not len(find_rotatable_torsions(molecule.numbers, molecule.bonds))
