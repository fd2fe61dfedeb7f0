"""nested: moves on the network's energy, one true call about the result; and what would make it anything but exact."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chi2

from conftest import BatchPool, BondPotential, ForceNetwork, start_state
from kstep.errors import UserError
from kstep.molecules.molecule import Molecule
from kstep.runs.counters import Tally
from kstep.runs.loop import macro_steps, run
from kstep.runs.network_dynamics import Carrier
from kstep.runs.recorder import read_restart, write_restart
from kstep.runs.tuning import thermalise
from kstep.schemes import Metropolis, Nested, network_ladder as network_ladder_module
from kstep.schemes.hybrid_config import HybridConfig
from kstep.schemes.ladder import TemperatureLadder
from kstep.schemes.network_ladder import NetworkLadder
from kstep.schemes.state import Info, per_replica
from kstep.units import BOLTZMANN, kT
from test_impulse_checked import Springs
from test_sampler import K_BOND, MASSES, R_BOND, SpringNetwork, double_well, pairs, populations, spring

RUNGS_K = (300.0, 450.0, 675.0)


def soft_spring():
    """A network of `spring` that is wrong: 0.7 times as stiff and 2 % too long."""
    return BondPotential(MASSES, [(0, 1)], lambda r: 0.35 * K_BOND * (r - 1.02 * R_BOND) ** 2,
                         lambda r: 0.7 * K_BOND * (r - 1.02 * R_BOND))


def ladder_of(network, masses=MASSES, rungs_K=RUNGS_K, *, moves=2, move_steps=6, dt_ps=1e-3, kind=NetworkLadder,
              **more):
    return kind(network, Carrier(network), masses, dt_ps, rungs_K, n_moves=moves, move_steps=move_steps, **more)


def nested(*args, **kwargs):
    ladder = ladder_of(*args, **kwargs)
    return Nested(ladder, ladder.n_moves * ladder.move_steps)


def steps_of(scheme, pool, state, n_steps, seed=0, **more):
    """[(state, info)] of n_steps macro-steps."""
    return list(macro_steps(scheme, pool, state, np.random.default_rng(seed), n_steps, **more))


def lengths(x):
    return np.linalg.norm(x[..., 1, :] - x[..., 0, :], axis=-1)


def mean_and_error(series):
    """Over independent chains; series (T,R)."""
    means = series.mean(axis=0)
    return means.mean(), means.std(ddof=1) / np.sqrt(len(means))


def radial_mean(u, temperature_K, of=lambda r: r, low=0.05, high=0.4):
    """The mean of of(r) where p(r) ~ r^2 exp(-u/kT), by quadrature."""
    r = np.linspace(low, high, 20001)
    weight = r**2 * np.exp(-(u(r) - u(r).min()) / kT(temperature_K))
    return (of(r) * weight).sum() / weight.sum()


def radial_draws(u, temperature_K, n, rng):
    """Pairs (n,2,3) whose distance follows r^2 exp(-u/kT)."""
    r = np.linspace(0.05, 0.4, 20001)
    cumulative = np.cumsum(r**2 * np.exp(-u(r) / kT(temperature_K)))
    x = np.zeros((n, 2, 3))
    x[:, 1, 0] = np.interp(rng.random(n) * cumulative[-1], cumulative, r)
    return x


# two tests, not one


def test_the_inner_test_is_on_the_network_and_the_outer_on_the_difference():
    """With the truth as the network only the inner test, which sees the integrator's error, refuses anything."""
    truth = spring()
    network, pool, rng = SpringNetwork(truth), BatchPool(truth), np.random.default_rng(0)
    state = start_state(pool, pairs(200, rng))
    scheme = nested(network, rungs_K=(300.0,), moves=1, move_steps=3, dt_ps=8e-3)
    tally = Tally(scheme)
    for after, info in steps_of(scheme, pool, state, 20):
        assert np.nan_to_num(np.abs(info.delta_H)).max() < 1e-9 and info.accepted.all()
        tally.add(after, info)
    assert tally.summary()["figures"]["inner_acceptance"][0] < 0.95
    single = Metropolis(Carrier(network), MASSES, 8e-3, 3, 300.0, length_law="uniform")
    assert np.mean([info.accepted for _, info in steps_of(single, pool, state, 20)]) < 0.95


def test_delta_H_is_the_change_of_the_true_energy_beyond_the_networks():
    truth, wrong, rng = spring(), soft_spring(), np.random.default_rng(1)
    pool, seen = BatchPool(truth), []
    scheme = nested(SpringNetwork(wrong), dt_ps=5e-4)
    state = start_state(pool, pairs(100, rng))
    steps = steps_of(scheme, pool, state, 6, observe=lambda proposal, truth: seen.append(proposal))
    for (after, info), proposal in zip(steps, seen, strict=True):
        proposed = proposal.positions
        d_new, d_old = (truth.batch(x)[0] - wrong.batch(x)[0] for x in (proposed, state.positions))
        assert np.isnan(info.delta_H).all() if not state.step else np.abs(info.delta_H - (d_new - d_old)).max() < 1e-9
        if state.step:
            assert np.array_equal(info.accepted, proposal.extra["log_u"] < -(d_new - d_old) / kT(300.0))
            assert 0.2 < info.accepted.mean() < 0.98
        moved = np.where(info.accepted[:, None, None], proposed, state.positions)
        assert np.array_equal(after.positions, moved)
        state = after


# reversibility: the palindrome, drawn parities, drawn lengths


class Dealt:
    """A generator that deals out what it was given, call by call."""

    def __init__(self, integers=(), random=(), normal=()):
        self.of_integers, self.of_random, self.of_normal = iter(integers), iter(random), iter(normal)

    def integers(self, *_, size=None):
        return next(self.of_integers)

    def random(self, size):
        return next(self.of_random)

    def standard_normal(self, shape):
        return next(self.of_normal).reshape(shape)


class Ring(ForceNetwork):
    """A ring of five sites, -2 ... 2 (the x coordinate of the second atom), of energies 0, 1, 0, 1, 0."""

    def __init__(self):
        super().__init__(np.zeros_like)

    def energy_and_forces(self, x):
        return np.abs(x[:, 1, 0]) % 2, np.zeros_like(x)

    @staticmethod
    def carry(x, v, masses, dt_ps, n_steps):
        """A step to the left or right, as the velocity says: reversible, with the momentum turned round."""
        x = x.copy()
        x[:, 1, 0] = (x[:, 1, 0] + np.sign(v[:, 1, 0] - v[:, 0, 0]) * n_steps + 2) % 5 - 2
        return x, v

    @staticmethod
    def inside(x):
        """A wall that tells mirror images apart: 2 is inside and -2 is not."""
        return x[:, 1, 0] != -2


# 1/kT of the three rungs is ln 2 times 3, 2 and 1 per unit of energy: every acceptance is a power of 1/2
RING_RUNGS_K = tuple(1.0 / (BOLTZMANN * np.log(2.0) * beta) for beta in (3, 2, 1))
STATES = np.array(list(itertools.product((-1, 0, 1, 2), repeat=3)))


def matrix_of(act, branches):
    """Transition matrix (S,S) of act(ladder, x, u, rng) between STATES, all branches (dicts of what is dealt) alike."""
    ladder = NetworkLadder(Ring(), Ring.carry, np.ones(2), 1.0, RING_RUNGS_K, n_moves=2, move_steps=1,
                           inside=Ring.inside, mirror=True)
    matrix = np.zeros((len(STATES), len(STATES)))
    for dealt in branches:
        x = np.zeros((len(STATES), 3, 2, 3))
        x[:, :, 1, 0] = STATES
        act(ladder, x, ladder.energy(x), Dealt(**dealt))
        matrix[np.arange(len(STATES)), ((x[:, :, 1, 0] + 1) @ [16, 4, 1]).astype(int)] += 1.0 / len(branches)
    return matrix


def exchanges(first):
    """Branches of the exchanges of a ladder whose first parity is among `first`; two halves for each of two pairs."""
    n = len(STATES)
    return [{"integers": [np.full(n, parity)], "random": [np.full(n, a), np.full(n, b)]}
            for parity in first for a in (0.25, 0.75) for b in (0.25, 0.75)]


def moves():
    """Branches of a move: a direction for each rung, and a die of 8, 4 or 2 sides."""
    n, sides = len(STATES), [(np.arange(s) + 0.5) / s for s in (8, 4, 2)]
    return [{"integers": [1], "random": [np.tile(dice, n)],
             "normal": [np.tile(np.array([[[-d, 0, 0], [d, 0, 0]] for d in directions]), (n, 1, 1))]}
            for directions in itertools.product((-1.0, 1.0), repeat=3) for dice in itertools.product(*sides)]


def reflections():
    """Branches of the mirror: a coin for each rung."""
    return [{"random": [np.tile(coins, (len(STATES), 1))]} for coins in itertools.product((0.25, 0.75), repeat=3)]


def imbalance(kernel):
    """The largest difference between the flows to and fro in the product of Boltzmann distributions."""
    beta = 1.0 / kT(np.array(RING_RUNGS_K))
    weight = np.exp(-(np.abs(STATES) % 2 * beta).sum(axis=1))
    flow = (weight / weight.sum())[:, None] * kernel
    return np.abs(flow - flow.T).max()


def test_the_palindrome_with_drawn_parities_is_reversible_and_nothing_less_is():
    exchange, fixed = (matrix_of(lambda ladder, x, u, rng: ladder._exchange(
        x, u, np.zeros((len(x), 2, 2), dtype=int), rng), exchanges(first)) for first in ((0, 1), (0,)))
    move = matrix_of(lambda ladder, x, u, rng: ladder._move(x, u, np.zeros((len(x), 3, 3), dtype=int), rng), moves())
    mirror = matrix_of(lambda ladder, x, u, rng: ladder._reflect(x, rng), reflections())
    for kernel in (exchange, fixed, move, mirror):
        assert np.abs(kernel.sum(axis=1) - 1.0).max() < 1e-12
    assert max(map(imbalance, (exchange, move, mirror))) < 1e-15
    inner = exchange @ move @ exchange @ move @ exchange
    assert imbalance(inner) < 1e-15 and imbalance(mirror @ inner @ mirror) < 1e-15
    assert imbalance(move @ exchange) > 1e-3  # moves, then exchanges
    assert imbalance(fixed @ move @ fixed) > 1e-3  # even pairs always before odd ones
    assert imbalance(inner @ mirror) > 1e-3  # mirror images at the end alone


def test_an_advance_is_that_palindrome():
    done = []

    class Noted(NetworkLadder):
        def _exchange(self, *args):
            done.append("S")
            super()._exchange(*args)

        def _move(self, *args):
            done.append("P")
            return super()._move(*args)

        def _reflect(self, *args):
            done.append("Q")
            super()._reflect(*args)

    rng = np.random.default_rng(0)
    ladder = ladder_of(SpringNetwork(spring()), moves=3, kind=Noted)
    x = np.repeat(pairs(2, rng)[:, None], 3, axis=1)
    ladder.advance(x, ladder.energy(x), rng)
    assert "".join(done) == "QSPSPSPSQ"


def flows(ladder, n, rng):
    """How often an advance leads from one to another of 3^m coarse states, and the m mean energies; stationary."""
    potential = ladder.network.potential
    x = np.stack([radial_draws(potential.u, t, n, rng) for t in ladder.temperatures_K], axis=1)
    u = ladder.energy(x)
    limits = np.array([0.35, 1.0]) * kT(np.array(ladder.temperatures_K))[:, None]
    after = ladder.advance(x, u, rng)
    code = 3 ** np.arange(ladder.n_rungs)
    here, there = ((energy[..., None] > limits).sum(axis=-1) @ code for energy in (u, after.energy))
    counts = np.zeros((code.sum() * 2 + 1,) * 2)
    np.add.at(counts, (here, there), 1)
    return counts, after.energy.mean(axis=0), u.mean(axis=0), after.energy.std(axis=0) / np.sqrt(n)


class Potential(SpringNetwork):
    """A network that knows the potential it is."""

    def __init__(self, potential):
        super().__init__(potential)
        self.potential = potential


def test_an_advance_flows_to_and_fro_alike():
    """Detailed balance of the real thing: from ladders in equilibrium, as many go from a to b as from b to a."""
    ladder = ladder_of(Potential(soft_spring()), rungs_K=(300.0, 900.0, 2700.0), moves=1, move_steps=2)
    counts, after, before, error = flows(ladder, 60_000, np.random.default_rng(2))
    assert (np.abs(after - before) < 5 * error).all()
    i, j = np.triu_indices(len(counts), 1)
    to, fro = counts[i, j], counts[j, i]
    often = to + fro >= 25
    assert often.sum() > 100
    statistic = ((to - fro)[often] ** 2 / (to + fro)[often]).sum()
    assert chi2.sf(statistic, often.sum()) > 1e-3


def test_the_parity_is_drawn_anew_for_every_exchange_and_ladder(monkeypatch):
    asked = []

    def noted(reduced, parity, rng):
        asked.append(parity.copy())
        return exchange(reduced, parity, rng)

    exchange = network_ladder_module.exchange
    monkeypatch.setattr(network_ladder_module, "exchange", noted)
    rng, n = np.random.default_rng(3), 400
    ladder = ladder_of(SpringNetwork(spring()), moves=3)
    x = np.repeat(pairs(n, rng)[:, None], 3, axis=1)
    led = ladder.advance(x, ladder.energy(x), rng)
    first, second = np.array(asked[::2]), np.array(asked[1::2])
    assert first.shape == (4, n) and np.array_equal(first + second, np.ones((4, n)))
    sigma = 0.5 / np.sqrt(n)
    assert (np.abs(first.mean(axis=1) - 0.5) < 4 * sigma).all()
    for a, b in itertools.combinations(first, 2):
        assert abs((a == b).mean() - 0.5) < 4 * sigma
    assert (led.exchanges[..., 0] == 4).all()  # every pair once in each


def test_the_length_of_a_move_is_drawn_without_a_look_at_the_state():
    ladder = ladder_of(SpringNetwork(spring()), moves=3, move_steps=8)
    rng = np.random.default_rng(4)
    cold, hot = pairs(4, rng)[:, None].repeat(3, axis=1), 1.3 * pairs(4, rng)[:, None].repeat(3, axis=1)
    one, other = ([ladder.advance(x, ladder.energy(x), np.random.default_rng(seed)).n_steps for seed in range(150)]
                  for x in (cold, hot))
    assert one == other
    assert np.mean(one) == pytest.approx(3 * 8, abs=4 * np.sqrt(3 * (15**2 - 1) / 12 / 150))
    single = {ladder._move(cold.copy(), ladder.energy(cold), np.zeros((4, 3, 3), dtype=int), rng) for _ in range(400)}
    assert single == set(range(1, 16))


# exact on every rung


def test_the_cold_rung_samples_the_truth_the_others_the_network_and_the_identity_holds():
    """At a timestep so long that each rung's own test on the network has much to refuse."""
    truth, wrong = spring(), soft_spring()
    scheme, pool = nested(SpringNetwork(wrong), move_steps=2, dt_ps=0.011), BatchPool(truth)
    state, tally = start_state(pool, pairs(500, np.random.default_rng(5))), Tally(scheme)
    steps = steps_of(scheme, pool, state, 120)[20:]
    for state, info in steps:
        tally.add(state, info)
    assert all(0.5 < share < 0.9 for share in tally.summary()["figures"]["inner_acceptance"])
    cold = lengths(np.array([s.positions for s, _ in steps]))
    hot = lengths(np.array([s.rungs for s, _ in steps]))
    for series, u, temperature_K in ((cold, truth.u, 300.0), (hot[:, :, 0], wrong.u, 450.0),
                                     (hot[:, :, 1], wrong.u, 675.0)):
        for of, precision in ((lambda r: r, 1e-3), (u, 0.03)):
            mean, error = mean_and_error(of(series))
            assert abs(mean - radial_mean(u, temperature_K, of)) < 4 * error
            assert error < precision * mean
    assert abs(radial_mean(truth.u, 300.0) - radial_mean(wrong.u, 300.0)) > 0.01 * R_BOND
    weights = np.exp(-np.array([info.delta_H for _, info in steps]) / kT(300.0))
    mean, error = mean_and_error(weights)
    assert abs(mean - 1.0) < 4 * error and error < 0.02
    assert 0.2 < np.mean([info.accepted for _, info in steps]) < 0.95


def bent(add, slope):
    """The double well with `add` (kJ/mol) added, whose derivative is `slope`: a network that is wrong there."""
    well = double_well()
    return BondPotential(well.masses, well.bonds, lambda r: well.u(r) + add(r), lambda r: well.du(r) + slope(r))


def bump(height, centre, width):
    def add(r):
        return height * np.exp(-(((r - centre) / width) ** 2))

    return bent(add, lambda r: -2.0 * (r - centre) / width**2 * add(r))


WELL_RUNGS_K = (300.0, 520.0, 900.0, 1600.0)
WRONG_WELLS = {"tilted": bent(lambda r: 30.0 * r, lambda r: np.full_like(r, 30.0)),
               "with a hole": bump(-9.0, 0.27, 0.015)}


def sample_wells(network, rungs_K, n_steps, n_replicas=128):
    """Whether the bond is in the outer well (T,R), accepted (T,R) and delta_H (T,R); all start in the inner one."""
    pool = BatchPool(double_well())
    scheme = nested(SpringNetwork(network), pool.potential.masses, rungs_K, moves=4, move_steps=8, dt_ps=4e-3)
    x = np.zeros((n_replicas, 2, 3))
    x[:, 1, 0] = 0.14
    steps = steps_of(scheme, pool, start_state(pool, x), n_steps, seed=6)
    return (lengths(np.array([s.positions for s, _ in steps])) > 0.19,
            np.array([info.accepted for _, info in steps]), np.array([info.delta_H for _, info in steps]))


@pytest.mark.parametrize("network", WRONG_WELLS.values(), ids=WRONG_WELLS)
def test_a_ladder_on_a_wrong_network_crosses_what_300_K_does_not_and_stays_exact(network):
    alone, _, _ = sample_wells(network, (300.0,), 150, 32)
    assert alone.mean() < 0.05  # it should be 0.75
    outer, accepted, delta = sample_wells(network, WELL_RUNGS_K, 320)
    mean, error = mean_and_error(outer[80:])
    assert abs(mean - populations(300.0)) < 4 * error and error < 0.03
    assert 0.3 < accepted[100:].mean() < 0.97
    identity, error = mean_and_error(np.exp(-delta[100:] / kT(300.0)))
    assert abs(identity - 1.0) < 4 * error


def test_a_false_wall_of_the_network_hides_a_well_and_neither_acceptance_nor_identity_tells():
    """The limit of the promise: what the network never proposes is never seen, so it must be looked for elsewhere."""
    outer, accepted, delta = sample_wells(bump(400.0, 0.24, 0.03), WELL_RUNGS_K, 150, 64)
    assert not outer.any()  # it should be 0.75
    assert accepted[50:].mean() > 0.5
    identity, error = mean_and_error(np.exp(-delta[50:] / kT(300.0)))
    assert abs(identity - 1.0) < 4 * error


# energies travel with positions


class Fickle(SpringNetwork):
    """Another answer each time, as in single precision another batch gives; 0.5 kJ/mol apart, about -1e5 kJ/mol."""

    def __init__(self, potential):
        super().__init__(potential)
        self.potential, self.rng, self.answers, self.rows = potential, np.random.default_rng(7), {}, 0
        self.energy_and_forces = self.answer

    def answer(self, x):
        energy, forces = self.potential.batch(x)
        energy = energy - 1e5 + 0.5 * self.rng.standard_normal(len(x))
        self.rows += len(x)
        for row, value in zip(x, energy):
            self.answers.setdefault(row.tobytes(), []).append(value)
        return energy, forces

    def of(self, x):
        """What it said of x (R,N,3), which it was asked about once."""
        answers = [self.answers[row.tobytes()] for row in x]
        assert {len(each) for each in answers} == {1}
        return np.array([value for value, in answers])


def test_the_network_is_asked_once_about_a_configuration_and_its_answer_travels():
    n, pool, network = 20, BatchPool(spring()), Fickle(soft_spring())
    scheme, seen = nested(network, moves=3), []
    state = start_state(pool, pairs(n, np.random.default_rng(8)))
    steps = steps_of(scheme, pool, state, 12, observe=lambda proposal, truth: seen.append(proposal.positions))
    assert network.rows == n * 3 * (1 + 12 * 3)
    before = None
    for k, (state, info) in enumerate(steps):
        if k >= 4:  # every rung has left its start, about which it was asked three times
            assert np.array_equal(state.network_energy, network.of(state.positions))
            assert np.array_equal(state.rung_energy, network.of(state.rungs.reshape(-1, 2, 3)).reshape(n, 2))
        if k >= 5:
            new, old = spring().batch(seen[k])[0] - network.of(seen[k]), before.energy - before.network_energy
            assert np.array_equal(info.delta_H, new - old)
        before = state
    assert not all(info.accepted.all() for _, info in steps)  # some went back


def test_a_difference_is_taken_in_double_precision():
    """An offset of -1e5 kJ/mol in truth and network changes nothing; in single precision it would cost 8e-3 kJ/mol."""
    def far(potential):
        return BondPotential(potential.masses, potential.bonds, lambda r: potential.u(r) - 1e5, potential.du)

    x = pairs(30, np.random.default_rng(9))
    near_pool, far_pool = BatchPool(spring()), BatchPool(far(spring()))
    near = steps_of(nested(SpringNetwork(soft_spring())), near_pool, start_state(near_pool, x), 10)
    away = steps_of(nested(SpringNetwork(far(soft_spring()))), far_pool, start_state(far_pool, x), 10)
    for (one, info), (other, far_info) in zip(near, away):
        assert np.nan_to_num(np.abs(info.delta_H - far_info.delta_H)).max() < 1e-8
        assert np.array_equal(one.positions, other.positions)


# what goes back goes back as one, and what fails is refused


class RefusingPool(BatchPool):
    """Fails on the rows of `refused` (a list of sets), call by call; a start comes first."""

    def __init__(self, potential, refused):
        super().__init__(potential)
        self.refused = iter(refused)

    def evaluate(self, positions, rows=None):
        truth = super().evaluate(positions)
        failed = np.isin(np.arange(len(positions)), list(next(self.refused, ())))
        return replace(truth, energy=np.where(failed, np.nan, truth.energy), failed=failed)


def test_a_refused_ladder_goes_back_as_one_with_all_its_energies():
    pool = RefusingPool(spring(), [(), (), (), (1, 3), ()])
    scheme = nested(SpringNetwork(soft_spring()), dt_ps=5e-4)
    steps = steps_of(scheme, pool, start_state(pool, pairs(60, np.random.default_rng(10))), 4)
    by_test = 0
    for (before, _), (after, info) in itertools.pairwise(steps):
        back = ~info.accepted
        by_test += (back & np.isfinite(info.delta_H)).sum()
        for name, value in per_replica(after).items():
            if value.size and name not in ("velocities", "stay"):
                assert np.array_equal(value[back], getattr(before, name)[back]), name
        there = after.network_energy != before.network_energy
        assert (there | ~back)[info.accepted].all() and there[info.accepted].mean() > 0.9
    assert not steps[2][1].accepted[[1, 3]].any() and by_test > 5
    assert list(np.flatnonzero(steps[2][1].failures)) == [1, 3]


def test_hot_rungs_cost_no_true_call():
    pool = BatchPool(spring())
    state = start_state(pool, pairs(10, np.random.default_rng(11)))
    steps = steps_of(nested(SpringNetwork(spring()), rungs_K=(300.0, 400.0, 500.0, 600.0), moves=3), pool, state, 5,
                     n_parts=2)
    assert pool.true_calls == 10 * (1 + 5)
    for _, info in steps:
        assert (info.attempts == 1).all() and info.moves.shape == (10, 4, 3) and (info.moves[..., 0] == 3).all()
        assert (info.inner_steps >= 3 * 4).all() and (info.inner_steps % 4 == 0).all()


def test_the_first_proposal_is_taken_as_it_is_and_the_second_is_judged():
    """A start whose d lies 40 kT below that of all others would else be left by no proposal."""
    class Trap(BatchPool):
        def evaluate(self, positions, rows=None):
            truth = super().evaluate(positions)
            return replace(truth, energy=truth.energy + np.where(lengths(positions) == start[0], 0.0, 40 * kT(300.0)))

    x = np.zeros((8, 2, 3))
    x[:, 1, 0] = R_BOND
    start, pool = lengths(x), Trap(spring())
    scheme = nested(SpringNetwork(spring()))
    steps = steps_of(scheme, pool, start_state(pool, x), 2)
    assert steps[0][1].accepted.all() and (steps[0][1].gap[:, 1] > 30 * kT(300.0)).all()
    assert (steps[0][0].stay == 0).all() and (lengths(steps[0][0].positions) != start).all()
    back = replace(steps[0][0], positions=x, energy=np.full(8, -1e3))  # under way, 400 kT below: now it is judged
    assert not steps_of(scheme, pool, back, 1)[0][1].accepted.any()


def test_the_identity_is_of_proposals_that_were_judged():
    """Starts whose d lies 8 kT above that of all others: of a run without burn-in it was 15.9 +- 3.7."""
    class Peak(BatchPool):
        def evaluate(self, positions, rows=None):
            truth = super().evaluate(positions)
            return replace(truth, energy=truth.energy + np.where(lengths(positions) == R_BOND, 8 * kT(300.0), 0.0))

    x = np.zeros((16, 2, 3))
    x[:, 1, 0] = R_BOND
    scheme, pool = nested(SpringNetwork(spring())), Peak(spring())
    tally = Tally(scheme)
    for number, (state, info) in enumerate(steps_of(scheme, pool, start_state(pool, x), 20)):
        assert np.isnan(info.delta_H).all() == (number == 0)
        tally.add(state, info)
    assert tally.summary()["mean_exp_minus_beta_dH"] == pytest.approx(1.0)
    assert tally.counts["untested"] == 16


def test_a_first_proposal_that_fails_leaves_the_start_and_the_second_is_judged():
    pool = RefusingPool(spring(), [(), (0,), (0,), ()])
    x = pairs(3, np.random.default_rng(12))
    steps = steps_of(nested(SpringNetwork(spring())), pool, start_state(pool, x), 3)
    assert [list(info.accepted) for _, info in steps] == [[False, True, True], [False, True, True], [True] * 3]
    assert [list(info.failures) for _, info in steps] == [[1, 0, 0], [1, 0, 0], [0, 0, 0]]
    for state, _ in steps[:2]:
        assert np.array_equal(state.positions[0], x[0]) and (state.rungs[0] == x[0]).all()


def one_test(network):
    return Metropolis(Carrier(network), MASSES, 1e-3, 12, 300.0, length_law="uniform")


@pytest.mark.parametrize("make", [nested, one_test])
def test_the_identity_holds_over_what_the_truth_has_a_number_for(make):
    """Where it has none is a wall: as many proposals lead out as in, and with 0 for them the mean is the share of the
    others, 0.6 here."""
    class Region(BatchPool):
        def evaluate(self, positions, rows=None):
            truth, lost = super().evaluate(positions), lengths(positions) > 1.05 * R_BOND
            return replace(truth, energy=np.where(lost, np.nan, truth.energy), failed=lost)

    scheme, pool = make(SpringNetwork(soft_spring())), Region(spring())
    x = radial_draws(spring().u, 300.0, 300, np.random.default_rng(3))
    state, tally, changes = start_state(pool, x[lengths(x) < 1.05 * R_BOND]), Tally(scheme), []
    for state, info in steps_of(scheme, pool, state, 60)[5:]:
        tally.add(state, info)
        changes.append(info.delta_H)
    changes = np.array(changes)
    share, found = np.isinf(changes).mean(), tally.summary()
    assert 0.3 < share < 0.5
    assert tally.counts["untested"] == tally.counts["failed_true_calls"] == np.isinf(changes).sum()
    identity, error = mean_and_error(np.array([np.exp(-d[np.isfinite(d)] / kT(300.0)).mean() for d in changes.T])[None])
    assert error < 0.005 and abs(identity - 1.0) < 4 * error
    assert found["mean_exp_minus_beta_dH"] == pytest.approx(identity, abs=0.01)


@pytest.mark.parametrize("broken", ["forces", "energies"])
def test_what_a_network_gives_as_nan_is_never_accepted(broken):
    truth = spring()

    class Broken(ForceNetwork):
        """NaN where the bond is longer than at rest."""

        def __init__(self):
            super().__init__(self.nan_forces if broken == "forces" else lambda x: truth.batch(x)[1])
            self.energy_and_forces = self.nan_energies if broken == "energies" else truth.batch

        def nan_forces(self, x):
            return np.where((lengths(x) > R_BOND)[:, None, None], np.nan, truth.batch(x)[1])

        def nan_energies(self, x):
            energy, forces = truth.batch(x)
            return np.where(lengths(x) > R_BOND, np.nan, energy), forces

    pool, x = BatchPool(truth), 0.99 * pairs(40, np.random.default_rng(13))
    inner = []
    for state, info in steps_of(nested(Broken(), moves=3), pool, start_state(pool, x), 10):
        inner.append(info.moves)
        for value in per_replica(state).values():
            assert np.isfinite(value).all()
        if broken == "energies":
            assert (lengths(state.positions) <= R_BOND).all() and (lengths(state.rungs) <= R_BOND).all()
    taken = np.array(inner)[..., 1].sum() / np.array(inner)[..., 0].sum()
    assert 0.05 < taken < 0.9


def test_a_start_that_the_network_has_no_energy_for_is_refused():
    """Its chain never left it, and was counted: every move of the network from NaN is refused, every question too."""
    truth, x = spring(), pairs(6, np.random.default_rng(13))
    x[2, 1] = x[2, 0] + [0.1, 0.0, 0.0]
    network, at_start = SpringNetwork(truth), lengths(x)[2]

    def lost(positions):
        energy, forces = truth.batch(positions)
        return np.where(lengths(positions) == at_start, np.nan, energy), forces

    network.energy_and_forces = lost
    with pytest.raises(UserError, match="no energy at 1 of 6 start geometries"):
        steps_of(nested(network), BatchPool(truth), start_state(BatchPool(truth), x), 1)
    with pytest.raises(UserError, match="no energy at 1 of 6 start geometries"):
        thermalise(network, Carrier(network), x, MASSES, TemperatureLadder((300.0,)), np.random.default_rng(0))


# walls and mirror images


def test_a_wall_keeps_every_rung_inside_and_the_ensemble_is_the_truncated_one():
    truth, wrong = spring(), soft_spring()
    scheme = nested(SpringNetwork(wrong), rungs_K=RUNGS_K[:2], inside=lambda x: lengths(x) < R_BOND)
    pool, tally = BatchPool(truth), Tally(scheme)
    steps = steps_of(scheme, pool, start_state(pool, 0.97 * pairs(400, np.random.default_rng(14))), 150)[20:]
    for state, info in steps:
        tally.add(state, info)
    cold, hot = (lengths(np.array([getattr(s, name) for s, _ in steps])) for name in ("positions", "rungs"))
    assert cold.max() < R_BOND and hot.max() < R_BOND
    for series, u, temperature_K in ((cold, truth.u, 300.0), (hot[..., 0], wrong.u, 450.0)):
        mean, error = mean_and_error(series)
        assert abs(mean - radial_mean(u, temperature_K, high=R_BOND)) < 4 * error and error < 1e-3 * mean
    refused = tally.summary()["figures"]["refused_at_walls"]
    inner = tally.summary()["figures"]["inner_acceptance"]
    assert all(0.1 < share < 0.9 and share + taken <= 1 for share, taken in zip(refused, inner))


def test_mirror_images_are_equally_populated_and_energies_travel_with_them():
    shape = np.array([[0, 0, 0], [0.13, 0, 0], [0.02, 0.11, 0], [0.05, 0.03, 0.09]])
    masses, truth = np.array([12.0, 14.0, 16.0, 19.0]), Springs(shape=shape)
    network, pool = Springs(0.05, shape=shape), BatchPool(truth)

    def handedness(x):
        a, b, c = (x[..., i, :] - x[..., 0, :] for i in (1, 2, 3))
        return np.sign((np.cross(a, b) * c).sum(-1))

    x = np.repeat(shape[None], 100, axis=0)
    one_handed = steps_of(nested(network, masses, RUNGS_K[:2]), pool, start_state(pool, x), 20)
    assert {float(h) for s, _ in one_handed for h in handedness(s.rungs).ravel()} == {1.0}
    steps = steps_of(nested(network, masses, RUNGS_K[:2], mirror=True), pool, start_state(pool, x), 40)
    for state, _ in steps:
        assert np.abs(state.network_energy - network.batch(state.positions)[0]).max() < 1e-9
        assert np.abs(state.rung_energy[:, 0] - network.batch(state.rungs[:, 0])[0]).max() < 1e-9
        assert np.abs(state.energy - truth.batch(state.positions)[0]).max() < 1e-9
    hands = np.array([[handedness(s.positions), handedness(s.rungs[:, 0])] for s, _ in steps[3:]])
    for rung in (0, 1):
        mean, error = mean_and_error(hands[:, rung])
        assert abs(mean) < 4 * error and error < 0.03
    cold, hot = hands[:, 0], hands[:, 1]
    mean, error = mean_and_error(cold * hot)  # each configuration has a coin of its own
    assert abs(mean) < 4 * error and error < 0.03


def test_mirror_images_that_a_wall_tells_apart_are_left_as_the_wall_has_them():
    """The bond points anywhere but far to the left: its mirror image is often, not always, on the other side."""
    def inside(x):
        return x[:, 1, 0] - x[:, 0, 0] > -0.05

    truth, x = spring(), np.zeros((1000, 2, 3))
    x[:, 1, 1] = R_BOND
    scheme, pool = nested(SpringNetwork(soft_spring()), rungs_K=RUNGS_K[:2], inside=inside, mirror=True, moves=1,
                          dt_ps=8e-3), BatchPool(truth)
    steps = steps_of(scheme, pool, start_state(pool, x), 120)[30:]
    cold, hot = (np.array([getattr(s, name) for s, _ in steps]) for name in ("positions", "rungs"))
    for positions, u, temperature_K in ((cold, truth.u, 300.0), (hot[:, :, 0], soft_spring().u, 450.0)):
        along = positions[:, :, 1, 0] - positions[:, :, 0, 0]
        assert along.min() > -0.05
        # at one r it is uniform in -0.05 ... r, and the weight of that r goes with the share of the sphere
        sphere = radial_mean(u, temperature_K, lambda r: (r + 0.05) / r)
        for series, exact in ((along, radial_mean(u, temperature_K, lambda r: (r - 0.05) / 2 * (r + 0.05) / r)),
                              (along > 0.05, radial_mean(u, temperature_K, lambda r: (r - 0.05) / r))):
            mean, error = mean_and_error(series)
            assert abs(mean - exact / sphere) < 4 * error and error < 0.01 * mean


# restart and counts


@pytest.mark.parametrize("rungs_K", [RUNGS_K, RUNGS_K[:1]], ids=["ladder", "one rung"])
@pytest.mark.parametrize("n_parts", [1, 2])
def test_a_run_cut_at_a_restart_file_is_bit_equal_to_one_that_was_not(rungs_K, n_parts, tmp_path):
    scheme, pool = nested(SpringNetwork(soft_spring()), rungs_K=rungs_K, mirror=True), BatchPool(spring())
    start = start_state(pool, pairs(41, np.random.default_rng(15)))
    options = {"n_parts": n_parts, "pause": lambda done: done == 7}
    whole = steps_of(scheme, pool, start, 12, seed=16, **options)
    rng = np.random.default_rng(16)
    first = macro_steps(scheme, pool, start, rng, 12, **options)
    state = [next(first)[0] for _ in range(7)][-1]
    assert state.stay.any()
    write_restart(tmp_path / "restart.npz", state, rng, {"seed": 16}, {"done": 7})
    read, again, *_ = read_restart(tmp_path / "restart.npz", {"seed": 16})
    for name, value in per_replica(state).items():
        assert np.array_equal(value, getattr(read, name)) and value.dtype == getattr(read, name).dtype, name
    resumed = list(macro_steps(scheme, pool, read, again, 5, n_parts=n_parts))
    assert len(resumed) == 5 and resumed[-1][0].step == whole[-1][0].step
    for cut, uncut in zip(resumed, whole[7:]):
        for own, other in zip(cut, uncut):
            for name, value in per_replica(own).items():
                assert np.array_equal(value, getattr(other, name)), name


def test_stays_are_counted_from_the_last_proposal_that_was_taken():
    """With the truth as its network nothing is refused but what the physics fails on: rows 0 and 2 here."""
    pool = RefusingPool(spring(), [(), (2,), (), (0,), (0, 2), (), (0,)])
    scheme = nested(SpringNetwork(spring()))
    tally, stays = Tally(scheme), []
    for state, info in steps_of(scheme, pool, start_state(pool, pairs(3, np.random.default_rng(17))), 6):
        tally.add(state, info)
        stays.append(list(info.stay))
        assert np.array_equal(state.stay, info.stay)
    assert stays == [[0, 0, 0], [0, 0, 0], [1, 0, 0], [2, 0, 1], [0, 0, 0], [1, 0, 0]]
    summary = tally.summary()
    assert tally.counts["stays"] == {"0": 14, "1": 3, "2": 1} and summary["figures"]["longest_stay"] == 2
    assert summary["acceptance"] == 13 / 18 and tally.counts["failed_true_calls"] == 5
    assert len(summary["swap_acceptance"]) == 2 and all(0.1 < share < 1 for share in summary["swap_acceptance"])
    assert tally.counts["moves"]["2"][0] == 3 * 6 * 2 and tally.counts["swaps"]["0"][0] == 3 * 6 * 3


@pytest.mark.parametrize("k_steps", [3, 25, 40])
def test_a_macro_step_is_as_long_as_its_moves_are_on_average(k_steps):
    """Also where k_steps is no multiple of the moves: time, cost and frames are reckoned with what is done."""
    config = HybridConfig(dt_fs=1.0, k_steps=k_steps, moves=10, network_ladder_K=[300.0], keep_species=False)
    network = SpringNetwork(spring())
    network.metadata = {}
    pair = Molecule("pair", "", np.array([6, 1]), MASSES, np.array([[0, 1]]), np.ones(1), np.zeros((1, 2, 3)),
                    np.zeros(1))
    scheme = Nested.build(config, pair, network=network, carry=Carrier(network), masses=MASSES, needs_forces=True)
    pool = BatchPool(spring())
    steps = steps_of(scheme, pool, start_state(pool, pairs(1, np.random.default_rng(20))), 150)
    done = np.array([info.inner_steps[0] for _, info in steps])
    assert abs(done.mean() - scheme.k_steps) <= 4 * done.std() / np.sqrt(len(done))
    assert abs(scheme.k_steps - k_steps) <= max(5, 10 - k_steps) and steps[-1][0].step == 150 * scheme.k_steps


def test_half_batches_and_whole_ones_are_settled_alike():
    """A half that is settled before the other is asked again has its own ladders, and no one else's."""
    pool, scheme = BatchPool(spring()), nested(SpringNetwork(soft_spring()))
    state = start_state(pool, pairs(7, np.random.default_rng(18)))
    for after, info in steps_of(scheme, pool, state, 5, n_parts=2):
        assert after.rungs.shape == (7, 2, 2, 3) and after.rung_energy.shape == (7, 2) and info.moves.shape == (7, 3, 3)
        assert np.abs(after.network_energy - soft_spring().batch(after.positions)[0]).max() < 1e-9
        assert np.abs(after.rung_energy.ravel() - soft_spring().batch(after.rungs.reshape(-1, 2, 3))[0]).max() < 1e-9
        assert np.abs(after.energy - spring().batch(after.positions)[0]).max() < 1e-9


def test_info_of_other_schemes_stays_empty():
    pool = BatchPool(spring())
    state = start_state(pool, pairs(3, np.random.default_rng(19)))
    scheme = Metropolis(Carrier(SpringNetwork(spring())), MASSES, 5e-4, 5, 300.0)
    assert not Info.begin(state, 5, MASSES).moves.size
    last = run(scheme, pool, state, np.random.default_rng(0), 2)
    assert not last.rungs.size and not last.stay.size and not last.network_energy.size
