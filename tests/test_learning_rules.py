"""What learning decides by: holes in a network, what a spread of its error is worth, and when more labels pay."""

from dataclasses import replace

import numpy as np
import pytest

from conftest import BatchPool, BondPotential, ForceNetwork, molecule_from_smiles, start_state
from kstep.dihedrals import dihedrals_deg
from kstep.forces.openmm import MDConfig
from kstep.learning.chains import Chains, Judgement, half_range, spread_worth
from kstep.learning.cold_start import settle_cold_start
from kstep.learning.ending import (
    LENGTHS,
    PER_LENGTH,
    LastFit,
    SampleCost,
    Trend,
    acceptance,
    more_labels_pay,
    samples_per_call,
)
from kstep.learning.target import Target
from kstep.learning.turned_torsions import RandomRotamers
from kstep.runs.network_dynamics import Carrier
from kstep.schemes.hybrid_config import HybridConfig
from kstep.schemes.network_ladder import NetworkLadder
from kstep.topology import bonds_between
from kstep.units import kT

TABLE = {0.2: 0.79, 0.4: 0.585, 0.7: 0.336, 1.0: 0.182, 1.3: 0.090, 1.5: 0.052}  # of long simulated chains


@pytest.mark.parametrize("spread", TABLE)
def test_a_spread_is_worth_what_a_simulated_chain_is(spread):
    assert samples_per_call(spread) == pytest.approx(TABLE[spread], rel=0.06)
    assert samples_per_call(0.0) == 1.0 and samples_per_call(np.inf) == 0.0


def test_acceptance_of_independent_proposals_is_that_of_a_chain():
    rng, s, d = np.random.default_rng(0), 1.0, 0.0
    proposed, log_u, taken = s * rng.normal(size=60000), np.log(rng.random(60000)), 0
    for new, u in zip(proposed, log_u):
        if u < d - new:
            d, taken = new, taken + 1
    assert acceptance(s) == pytest.approx(taken / 60000, abs=0.015)


def test_the_trend_is_the_power_law_there_was():
    rounds = [(n, 40.0 * n**-0.7, 10**6) for n in (200, 280, 400, 560)]
    trend = Trend.of(rounds)
    assert trend.fall == pytest.approx(0.7, abs=0.05) and trend.spread(800) == pytest.approx(40 * 800**-0.7, rel=0.05)
    flat = Trend.of([(n, 0.5, 10**6) for n in (200, 280, 400, 560)])
    assert flat.fall < 0.05 and flat.spread(5000) == pytest.approx(0.5, rel=0.1)
    assert Trend.of([(200, 1.0, 50)]).fall == pytest.approx(0.5)  # nothing known of it yet


def stops_at(*sampling, overhead=0.0, growth=0.4, **more):
    """Labels at which learning ends whose spread in kT is 20 n^-0.6, for sampling as SampleCost takes it."""
    n, rounds = 200, []
    while not rounds or more_labels_pay(rounds, n, growth=growth, overhead=overhead, sampling=SampleCost(*sampling),
                                         **more):
        rounds.append((n, 20.0 * n**-0.6, 10**4))
        n = round(n * (1 + growth))
    return n


def test_learning_ends_earlier_for_fewer_samples_and_dearer_fits():
    ends = [stops_at(wanted) for wanted in (20, 200, 2000, 20000)]
    assert ends == sorted(ends) and ends[0] < ends[1] < ends[3]
    assert stops_at(2000, overhead=3.0) < stops_at(2000)
    # those that do not count are 200 more, 1.5 calls each, and moves as dear as calls are calls
    assert stops_at(400, 1.0) == stops_at(200) == stops_at(100, 1.0, 1.0) < stops_at(600)
    best = min(range(200, 20000, 100), key=lambda n: n + 1.5 * 400 / samples_per_call(20.0 * n**-0.6))
    assert best / 2 < ends[1] < best * 2


def test_more_is_learned_while_nothing_is_known_and_not_where_labels_stopped_helping():
    def pays(*spreads):
        return more_labels_pay([(200 * 2**i, s, 100) for i, s in enumerate(spreads)], 400, growth=0.4,
                               sampling=SampleCost(200), overhead=0.0)

    assert pays(np.inf) and pays(60.0)
    assert not pays(0.9, 0.9, 0.9, 0.9) and pays(6.0, 3.0, 1.5)


def test_the_last_fit_is_as_long_as_pays():
    fit = LastFit(left=0.5, cost=0.8)
    assert fit.spread(2.0, 1) == 1.0 and 0.5 < fit.spread(2.0, 4) < 0.8  # four times longer, and better
    for samples_wanted in (20, 200, 2000, 20000):
        sampling = SampleCost(samples_wanted)
        whole = {length: length * 0.8 * 1000 + sampling(fit.spread(2.0, length)) for length in LENGTHS}
        assert fit.best(2.0, 1000, sampling) == (min(whole.values()), min(whole, key=whole.get))
    lengths = [fit.best(2.0, 1000, SampleCost(n))[1] for n in (20, 200, 2000)]
    assert lengths == sorted(lengths) and lengths[0] == LENGTHS[0] and lengths[-1] == LENGTHS[-1]
    free = LastFit(cost=0.0)
    assert free.best(2.0, 1000, SampleCost(1))[1] == LENGTHS[-1]
    assert replace(free, longest=2).best(2.0, 1000, SampleCost(1))[1] == 2


def test_learning_reckons_with_what_the_last_fit_leaves():
    ends = [stops_at(2000, last_fit=LastFit(left)) for left in (1.0, 0.5, 0.25)]
    assert ends[0] > ends[1] > ends[2]  # a better fit takes fewer labels
    assert stops_at(2000, last_fit=LastFit(0.5, cost=3.0)) <= ends[1]  # it has to be paid for all labels
    whole = {n: n + min(length * 0.3 * n + 1.5 * 2200 / samples_per_call(10.0 * n**-0.6 * length**-PER_LENGTH)
                        for length in LENGTHS) for n in range(200, 20000, 100)}
    best = min(whole, key=whole.get)
    assert best / 2 < stops_at(2000, last_fit=LastFit(0.5, cost=0.3)) < best * 2


def test_a_last_fit_that_disappoints_is_no_end():
    rounds = [(n, 60.0 * n**-0.6, 10**4) for n in (600, 850, 1200)]
    usual, at = LastFit(0.4, cost=0.1), Trend.of(rounds).spread(1200)

    def pays(fit, made):
        return more_labels_pay(rounds, 1200, growth=0.4, overhead=0.1, sampling=SampleCost(800), last_fit=fit,
                               made=made)

    assert not pays(usual, None)
    assert usual.learned_from(np.inf, 2, 1.0) == usual == usual.learned_from(1.0, 2, np.inf)  # nothing is known
    assert usual.best(np.inf, 1200, SampleCost(200)) == (np.inf, 1)
    kept = usual.learned_from(at, 2, usual.spread(at, 2))
    assert kept.left == pytest.approx(usual.left) and not pays(kept, 2)  # it did what was reckoned with
    poor = usual.learned_from(at, 2, 6.0 * usual.spread(at, 2))
    assert poor.left == pytest.approx(6.0**0.5 * usual.left) and pays(poor, 2)
    # what is made costs nothing more, and a better one to come would
    dear = LastFit(0.4, cost=50.0)
    assert not more_labels_pay(rounds, 1200, growth=0.4, sampling=SampleCost(800), overhead=0.1, last_fit=dear, made=1)


def test_a_molecule_without_torsions_takes_fewer_calls_for_a_sample():
    facts = {"spec": None, "method": "MMFF94", "temperatures_K": (300.0,)}
    worth = {smiles: Target(molecule=molecule_from_smiles(smiles, "m", 1), **facts).calls_per_sample
             for smiles in ("CO", "CCO")}
    assert worth == {"CO": 1.0, "CCO": 1.5}


# --- chains and holes --------------------------------------------------------------------------------------------

R0, HOLE_NM, DEPTH = 0.15, 0.185, 400.0
TRUTH = BondPotential(np.array([12.0, 12.0]), [[0, 1]], lambda r: 2e3 * (r - R0) ** 2, lambda r: 4e3 * (r - R0))


class Holed(ForceNetwork):
    """The truth, and a hole in it that thermal chains find."""

    def __init__(self, depth):
        self.depth = depth

    def energy_and_forces(self, x):
        energy, forces = TRUTH.batch(x)
        d = x[:, 0] - x[:, 1]
        r = np.linalg.norm(d, axis=-1)
        well = -self.depth * np.exp(-0.5 * ((r - HOLE_NM) / 0.003) ** 2)
        slope = -well * (r - HOLE_NM) / 0.003**2
        pull = -slope[:, None] * d / r[:, None]
        return energy + well, forces + np.stack([pull, -pull], axis=1)

    def forces(self, x):
        return self.energy_and_forces(x)[1]


def explored(depth, n_questions=12, start_nm=R0, n_parts=1, seed=0):
    """Chains of 8 ladders of two rungs on the truth with such a hole, the answers, and the pool."""
    network, pool = Holed(depth), BatchPool(TRUTH)
    ladder = NetworkLadder(network, Carrier(network), TRUTH.masses, 0.002, (300.0, 600.0), n_moves=4, move_steps=20)
    x = np.zeros((16, 2, 3))
    x[:, 1, 0] = R0
    x[:4, 1, 0] = start_nm
    chains = Chains(ladder, start_state(pool, x), Judgement((300.0, 600.0), 10.0),
                    lambda frame: np.isfinite(frame.energy), np.random.default_rng(seed))
    answers = []
    chains.ask(pool, n_questions, lambda proposal, truth: answers.append((proposal, truth)), n_parts)
    return chains, answers, pool


def lengths(x):
    return np.linalg.norm(x[..., 0, :] - x[..., 1, :], axis=-1)


def test_a_planted_hole_is_found_becomes_labels_and_holds_no_chain():
    chains, answers, pool = explored(DEPTH, n_questions=40)
    seen = chains.seen()
    asked = np.concatenate([lengths(proposal.positions) for proposal, _ in answers])
    in_hole = np.abs(asked - HOLE_NM) < 0.006
    assert sum(seen["holes"]) >= in_hole.sum() > 3  # and every one of them was shown to whoever learns
    assert not (np.abs(lengths(chains.state.positions) - HOLE_NM) < 0.006).any()
    assert np.allclose(chains.state.energy, TRUTH.batch(chains.state.positions)[0])
    assert pool.true_calls == 16 + len(asked)
    sound, _, _ = explored(0.0)
    assert sound.seen()["holes"] == [0, 0] and max(sound.seen()["spread_kT"]) < 1e-6


def test_a_chain_that_begins_in_a_hole_is_put_where_the_network_is_sound():
    chains, _, _ = explored(DEPTH, n_questions=1, start_nm=HOLE_NM)
    assert not (np.abs(lengths(chains.state.positions) - HOLE_NM) < 0.006).any()


def test_two_halves_ask_as_often_as_one():
    whole, halves = explored(0.0, n_parts=1), explored(0.0, n_parts=2)
    assert whole[2].true_calls == halves[2].true_calls and whole[0].seen()["states"] == halves[0].seen()["states"]
    rows = np.concatenate([proposal.rows for proposal, _ in halves[1]])
    assert set(rows) == set(range(16))
    assert np.allclose(halves[0].state.energy, TRUTH.batch(halves[0].state.positions)[0])


def test_a_hole_is_measured_in_the_heat_of_its_rung():
    judgement, d = Judgement((300.0, 600.0), 10.0), np.zeros((5, 2))
    d[0] = 12.0 * kT(300.0)
    assert judgement.sound(d, d).tolist() == [[False, True]] + [[True, True]] * 4
    d[0] = -12.0 * kT(300.0), np.nan  # too low and too high alike
    assert judgement.sound(d, d)[0].tolist() == [False, False]
    assert np.array_equal(judgement.sound(d + 1e4, d + 1e4), judgement.sound(d, d))  # zeros of energy do not matter


def test_a_spread_is_that_of_a_gaussian_and_knows_no_outliers():
    values = np.random.default_rng(0).normal(size=20000) * 3.0
    assert half_range(values) == pytest.approx(3.0, rel=0.03)
    assert half_range(np.append(values, [1e9, np.nan])) == pytest.approx(half_range(values), rel=1e-3)
    assert half_range(np.array([np.nan])) == np.inf


def test_a_conformer_that_the_network_puts_too_high_widens_the_spread_that_learning_goes_by():
    d = np.random.default_rng(0).normal(size=2000)
    assert spread_worth(d) == pytest.approx(1.0, rel=0.1)  # Gaussian: exp(-s^2) of the weights are worth something
    lower, higher = (np.append(d, np.full(10, sign * 6.0)) for sign in (-1, 1))
    assert half_range(lower) == pytest.approx(half_range(d), rel=0.01)
    assert spread_worth(lower) > 1.8  # half of the weight on one state in 200
    assert spread_worth(higher) == pytest.approx(spread_worth(d), rel=0.01)  # what is too low there costs no weight
    assert spread_worth(np.append(d, np.nan)) == spread_worth(d) and spread_worth(np.array([np.nan])) == np.inf


@pytest.mark.parametrize(("asked", "tune"), [
    ({}, True), ({"tune": False}, False), ({"tune": True, "dt_fs": 1.0, "k_steps": 20}, True),
    ({"dt_fs": 1.0, "k_steps": 20}, None)])
def test_a_cold_start_is_tuned_where_something_is_open_and_nobody_forbids_it(asked, tune):
    assert settle_cold_start(HybridConfig(**asked), MDConfig()).tune is tune


# --- rotamers drawn at random ------------------------------------------------------------------------------------

def test_rotamers_drawn_at_random_keep_bonds_and_angles_and_do_not_clash():
    hexanol = molecule_from_smiles("CCCCCCO", "hexanol", 3)
    rng, torsions = np.random.default_rng(3), hexanol.rotatable_torsions()
    start = hexanol.conformers[np.zeros(60, dtype=int)]
    draw = RandomRotamers(hexanol.numbers, hexanol.bonds, torsions)
    out = draw(start, rng)

    def distances(x, least, most=99):
        apart = np.triu_indices(len(hexanol), k=1)
        bonds = bonds_between(len(hexanol), hexanol.bonds, 4)[apart]
        chosen = np.array(apart)[:, (bonds >= least) & (bonds <= most)]
        return np.linalg.norm(x[:, chosen[0]] - x[:, chosen[1]], axis=-1), hexanol.numbers[chosen]

    assert np.allclose(distances(out, 1, 2)[0], distances(start, 1, 2)[0])  # bonds and angles
    assert len({tuple(row) for row in np.round(dihedrals_deg(out, torsions) / 120).astype(int) % 3}) > 30  # of 243
    far, numbers = distances(out, 4)
    assert 0.16 < far[:, (numbers == 1).all(axis=0)].min() < 0.25 and far[:, (numbers == 6).all(axis=0)].min() > 0.23
    draw.least = draw.least + 10.0  # nothing fits
    assert np.array_equal(draw(start, rng), start)


def test_who_draws_rotamers():
    facts = {"spec": None, "method": "MMFF94", "temperatures_K": (300.0,)}
    drawn = {smiles: Target(molecule=molecule_from_smiles(smiles, "m", 1), **facts).rotamers() is not None
             for smiles in ("CC", "CCO")}
    assert drawn == {"CC": False, "CCO": True}


@pytest.mark.parametrize("n_parts", [1, 2])
def test_scattered_ladders_are_asked_and_do_not_count(n_parts):
    """Every second ladder begins far out: what is asked there, before anything moves, and of it later is a label, and
    says nothing of the network's spread."""
    network, pool = Holed(0.0), BatchPool(TRUTH)
    ladder = NetworkLadder(network, Carrier(network), TRUTH.masses, 0.002, (300.0, 600.0), n_moves=4, move_steps=20)
    x = np.zeros((16, 2, 3))
    x[:, 1, 0] = R0
    chains = Chains(ladder, start_state(pool, x), Judgement((300.0, 600.0), 10.0),
                    lambda frame: np.isfinite(frame.energy), np.random.default_rng(0))
    before = chains.x.copy()
    told = []
    for begin_there in (False, True):
        assert np.array_equal(chains.x, before)
        chains.ask_apart(lambda positions, rng: positions * 1.2, pool, lambda *said: told.append(said),
                         begin_there=begin_there)
    even, odd = slice(0, 8, 2), slice(1, 8, 2)
    assert np.array_equal(chains.x[even], before[even]) and np.allclose(chains.x[odd], 1.2 * before[odd])
    assert not chains.sound[odd].any() and chains.sound[even].all()
    (before_that, _), (proposal, truth) = told
    assert np.array_equal(before_that.positions, proposal.positions)
    assert list(proposal.rows) == [2, 3, 6, 7, 10, 11, 14, 15]
    assert np.array_equal(proposal.positions, chains.x[odd].reshape(-1, *x.shape[1:]))
    assert np.array_equal(truth.energy, TRUTH.batch(proposal.positions)[0])
    assert np.array_equal(chains.energy[odd].ravel(), truth.energy) and truth.energy.min() > chains.energy[even].max()
    asked = []
    chains.ask(pool, 4, lambda proposal, truth: asked.append(proposal.rows), n_parts)
    assert {*np.concatenate(asked)} == set(range(16)) and chains.seen()["states"] == 4 * 8
    assert chains.sound.all() and np.allclose(chains.state.energy, TRUTH.batch(chains.state.positions)[0])
