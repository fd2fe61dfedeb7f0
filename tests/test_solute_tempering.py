"""A ladder that heats the solute alone: exact, and indifferent to how much there is around the solute."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import erfc
from scipy.stats import chi2

from conftest import BatchPool, start_state
from kstep.molecules.molecule import Molecule
from kstep.runs import exploration as ex
from kstep.runs.counters import Tally
from kstep.runs.loop import macro_steps
from kstep.runs.network_dynamics import Carrier, ShardedCarrier
from kstep.runs.recorder import read_restart, write_restart
from kstep.schemes import Nested
from kstep.schemes.ladder import exchange, rungs_between
from kstep.schemes.network_ladder import NetworkLadder
from kstep.schemes.state import per_replica
from kstep.units import kT
from test_nested import bent, lengths, mean_and_error, soft_spring
from test_sampler import SpringNetwork, double_well

RUNGS_K = (300.0, 520.0, 900.0, 1600.0)
C_COUPLING, K_BATH = 30.0, 6.0e3  # kJ/mol/nm2
N_NEAR = 5  # bath atoms that the coupling reaches


class Solvated:
    """A bond (atoms 0, 1) and `n_bath` atoms, each held by atom 1 (the bath); atom 0 pulls the first N_NEAR (coupling).

    As truth it has `batch`; as a network of parts bond, coupling and bath, of which a ladder heats the share `heated`.
    Gaussian bath atoms can be integrated out: reduced springs c = C/kT_coupling and k = K/kT_bath of each that is
    near leave c k/(c + k) |x_0 - x_1|^2 / 2.
    """

    metadata, device = {}, "cpu"
    native, numpy = staticmethod(SpringNetwork.native), staticmethod(SpringNetwork.numpy)

    def __init__(self, bond, n_bath, heated=(1.0, 1.0, 0.0)):
        self.bond, self.n_bath, self.heated = bond, n_bath, heated
        self.masses = np.array([*bond.masses, *[16.0] * n_bath])
        self.near = np.where(np.arange(n_bath) < N_NEAR, C_COUPLING, 0.0)[:, None]

    def energy_parts(self, x):
        to_0, to_1 = x[:, 2:] - x[:, :1], x[:, 2:] - x[:, 1:2]
        return np.stack([self.bond.batch(x[:, :2])[0], 0.5 * (self.near * to_0**2).sum((1, 2)),
                         0.5 * K_BATH * (to_1**2).sum((1, 2))], axis=1)

    def batch(self, x):
        return self.energy_parts(x).sum(axis=1), self.numpy(self.forces(self.native(x)))

    energy_and_forces = batch

    def forces(self, y, scale=None):
        """Forces (N,3,S) at y (N,3,S)."""
        scale, near = np.ones(3) if scale is None else scale.T, slice(2, 2 + N_NEAR)
        forces = np.empty_like(y)
        forces[:2] = scale[0] * self.bond.forces_replicas_last(y[:2])
        pull_0, pull_1 = scale[1] * C_COUPLING * (y[near] - y[0]), scale[2] * K_BATH * (y[2:] - y[1])
        forces[2:] = -pull_1
        forces[near] -= pull_0
        forces[0] += pull_0.sum(axis=0)
        forces[1] += pull_1.sum(axis=0)
        return forces

    def springs(self, part_K):
        """Reduced springs (1/nm2) of one near bath atom to atoms 0 and 1 at temperatures part_K (3,)."""
        return C_COUPLING / kT(part_K[1]), K_BATH / kT(part_K[2])

    def radial(self, part_K):
        """Distances and their weights."""
        r, (c, k) = np.linspace(0.05, 0.4, 20001), self.springs(part_K)
        log = 2 * np.log(r) - self.bond.u(r) / kT(part_K[0]) - 0.5 * min(self.n_bath, N_NEAR) * c * k / (c + k) * r**2
        return r, np.exp(log - log.max())

    def mean(self, of, part_K):
        r, weight = self.radial(part_K)
        return (of(r) * weight).sum() / weight.sum()

    def draws(self, part_K, n, rng):
        """Configurations (n,N,3) with parts at these temperatures, drawn directly."""
        r, weight = self.radial(part_K)
        x, (c, k) = np.zeros((n, 2 + self.n_bath, 3)), self.springs(part_K)
        x[:, 1, 0] = np.interp(rng.random(n) * weight.sum(), np.cumsum(weight), r)
        c = c * (self.near > 0)
        middle = k / (c + k) * x[:, 1:2]
        x[:, 2:] = middle + rng.standard_normal((n, self.n_bath, 3)) / np.sqrt(c + k)
        return x


class AllHeated(Solvated):
    """The same potential as a plain network, which a ladder heats as a whole."""

    def __init__(self, *args):
        super().__init__(*args)
        del self.heated


def part_temperatures(rungs_K, heated):
    """(m,3): geometric means of the rung's and the coldest temperature."""
    return np.array([[np.exp(h * np.log(t) + (1 - h) * np.log(rungs_K[0])) for h in heated] for t in rungs_K])


def ladder_of(network, rungs_K=RUNGS_K, *, moves=4, move_steps=8, dt_ps=3e-3):
    return NetworkLadder(network, Carrier(network), network.masses, dt_ps, rungs_K, n_moves=moves,
                         move_steps=move_steps)


def started(network, n):
    """(n,N,3), all bonds in the inner well."""
    x = np.zeros((n, 2 + network.n_bath, 3))
    x[:, 1:, 0] = 0.14
    return x


@pytest.mark.parametrize("heated", [(1.0, 1.0, 0.0), (1.0, 0.5, 0.0)])
def test_a_ladder_of_the_solute_crosses_and_every_rung_is_exact(heated):
    """A wrong network around a true well; the bath of every rung stays at 300 K."""
    truth = Solvated(double_well(), 5)
    network = Solvated(bent(lambda r: 30.0 * r, lambda r: np.full_like(r, 30.0)), 5, heated)
    pool, scheme = BatchPool(truth), Nested(ladder_of(network), 32)
    tally, cold, parts, lengths_of, weights = Tally(scheme), [], [], [], []
    start = start_state(pool, started(truth, 128))
    for k, (state, info) in enumerate(macro_steps(scheme, pool, start, np.random.default_rng(0), 320)):
        assert np.abs(network.energy_parts(state.positions) - state.network_energy).max() < 1e-9
        tally.add(state, info)
        if k >= 80:
            cold.append(lengths(state.positions) > 0.19)
            parts.append(state.rung_energy)
            lengths_of.append(lengths(state.rungs))
            weights.append(np.exp(-info.delta_H / kT(300.0)))
    part_K = part_temperatures(RUNGS_K, heated)
    mean, error = mean_and_error(np.array(cold))
    exact = truth.mean(lambda r: r > 0.19, part_K[0])
    assert abs(mean - exact) < 4 * error and error < 0.03 and 0.2 < exact < 0.8
    identity, error = mean_and_error(np.array(weights))
    assert abs(identity - 1.0) < 4 * error and error < 0.05
    parts, lengths_of = np.array(parts), np.array(lengths_of)
    for rung, temperatures_K in enumerate(part_K[1:]):
        mean, error = mean_and_error(lengths_of[..., rung] > 0.19)
        assert abs(mean - network.mean(lambda r: r > 0.19, temperatures_K)) < 4 * error and error < 0.03
        c, k = network.springs(temperatures_K)  # a bath atom is (k r/(c + k), 1/(c + k)) about atom 0
        square = network.mean(np.square, temperatures_K)
        for part, spring, share in ((1, C_COUPLING, k / (c + k)), (2, K_BATH, c / (c + k))):
            mean, error = mean_and_error(parts[..., rung, part])
            exact = 0.5 * spring * network.n_bath * (share**2 * square + 3 / (c + k))
            assert abs(mean - exact) < 4 * error and error < 0.03 * exact
    figures = tally.summary()
    assert all(share > 0.9 for share in figures["figures"]["inner_acceptance"])  # forces are those of what is tested
    assert all(0.1 < share < 0.9 for share in figures["swap_acceptance"])


def agreement(network, rungs_K, part_K, n=8000):
    """Share of exchanges that two rungs in equilibrium agree to."""
    ladder, rng = ladder_of(network, rungs_K), np.random.default_rng(1)
    x = np.stack([network.draws(t, n, rng) for t in part_K], axis=1)
    seen = np.zeros((n, 1, 2), dtype=int)
    ladder._exchange(x, ladder.energy(x), seen, rng)
    assert (seen[..., 0] == 1).all()
    return seen[..., 1].mean()


def test_a_bath_stops_the_exchanges_of_all_atoms_and_not_those_of_the_solute():
    rungs_K, sizes = (300.0, 450.0), (5, 32, 256)
    of_solute = [agreement(Solvated(soft_spring(), n), rungs_K, part_temperatures(rungs_K, (1.0, 1.0, 0.0)))
                 for n in sizes]
    of_all = [agreement(AllHeated(soft_spring(), n), rungs_K, part_temperatures(rungs_K, (1.0, 1.0, 1.0)))
              for n in sizes]
    assert min(of_solute) > 0.5 and max(of_solute) - min(of_solute) < 0.05
    assert of_all[0] > of_all[1] > of_all[2] and of_all[2] < 1e-3
    mu = 3 * sizes[1] / 2 * 0.5**2 / 1.5  # harmonic modes at a ratio of 1.5: `rungs_between`
    assert of_all[1] == pytest.approx(erfc(np.sqrt(mu) / 2), abs=0.02)


def test_an_exchange_is_judged_by_both_reduced_energies_of_both():
    """Numbers whose four reduced energies differ: each of them must count, with its sign."""
    reduced = np.array([[[1.0, 1.4], [0.3, 0.5]]]).repeat(200_000, axis=0)
    order, swapped = exchange(reduced, np.zeros(len(reduced), dtype=int), np.random.default_rng(2))
    assert swapped.mean() == pytest.approx(np.exp(1.0 + 0.5 - 1.4 - 0.3), abs=0.005)
    assert np.array_equal(order[:, 0], swapped[:, 0]) and np.array_equal(order.sum(axis=1), np.ones(len(order)))


def test_an_advance_of_a_solute_ladder_flows_to_and_fro_alike():
    """Detailed balance, from ladders drawn in equilibrium; coarse states are the solute's energy and the bath's."""
    rungs_K, heated, n, rng = (300.0, 900.0), (1.0, 0.5, 0.0), 60_000, np.random.default_rng(3)
    network, part_K = Solvated(soft_spring(), 2, heated), part_temperatures(rungs_K, heated)
    ladder = ladder_of(network, rungs_K, moves=1, move_steps=2, dt_ps=6e-3)
    x = np.stack([network.draws(t, n, rng) for t in part_K], axis=1)
    u = ladder.energy(x)
    led = ladder.advance(x, u, rng)
    assert np.abs(ladder.energy(led.positions) - led.energy).max() < 1e-9
    assert (0.3 < led.exchanges[..., 1].sum() / led.exchanges[..., 0].sum()) and led.moves[..., 1].mean() < 0.97

    def coarse(energy):
        solute, bath = energy[..., :2].sum(-1), energy[..., 2]
        limits = [np.quantile(part[:, rung], q) for part in (u[..., :2].sum(-1), u[..., 2]) for rung in (0, 1)
                  for q in (0.4, 0.75)]
        state = np.zeros(len(energy), dtype=int)
        for i, part in enumerate((solute[:, 0], solute[:, 1], bath[:, 0], bath[:, 1])):
            state = 3 * state + (part > limits[2 * i]) + (part > limits[2 * i + 1])
        return state

    counts = np.zeros((81, 81))
    np.add.at(counts, (coarse(u), coarse(led.energy)), 1)
    error = led.energy.std(axis=0) / np.sqrt(n)
    assert (np.abs(led.energy.mean(axis=0) - u.mean(axis=0)) < 5 * error).all()
    i, j = np.triu_indices(len(counts), 1)
    to, fro = counts[i, j], counts[j, i]
    often = to + fro >= 25
    assert often.sum() > 100
    assert chi2.sf(((to - fro)[often] ** 2 / (to + fro)[often]).sum(), often.sum()) > 1e-3


def test_one_rung_is_the_network_as_a_whole():
    network, rng = Solvated(soft_spring(), 3), np.random.default_rng(4)
    x = network.draws([300.0] * 3, 6, rng)[:, None]
    one, whole = (ladder_of(kind(soft_spring(), 3), (300.0,)) for kind in (Solvated, AllHeated))
    led, same = (each.advance(x, each.energy(x), np.random.default_rng(5)) for each in (one, whole))
    assert led.energy.shape == (6, 1) and np.array_equal(led.positions, same.positions)
    assert np.array_equal(led.energy, same.energy) and np.array_equal(one.total(led.energy), led.energy)


@pytest.mark.parametrize("n_parts", [1, 2])
def test_a_cut_run_on_a_solute_ladder_is_bit_equal(n_parts, tmp_path):
    network, pool = Solvated(soft_spring(), 3), BatchPool(Solvated(double_well(), 3))
    scheme = Nested(ladder_of(network, RUNGS_K[:3]), 32)
    start = start_state(pool, started(network, 9))
    options = {"n_parts": n_parts, "pause": lambda done: done == 4}
    whole = list(macro_steps(scheme, pool, start, np.random.default_rng(6), 8, **options))
    rng = np.random.default_rng(6)
    first = macro_steps(scheme, pool, start, rng, 8, **options)
    state = [next(first)[0] for _ in range(4)][-1]
    assert state.network_energy.shape == (9, 3) and state.rung_energy.shape == (9, 2, 3)
    write_restart(tmp_path / "restart.npz", state, rng, {"seed": 6}, {"done": 4})
    read, again, *_ = read_restart(tmp_path / "restart.npz", {"seed": 6})
    for (cut, _), (uncut, _) in zip(macro_steps(scheme, pool, read, again, 4, n_parts=n_parts), whole[4:], strict=True):
        for name, value in per_replica(cut).items():
            assert np.array_equal(value, getattr(uncut, name)), name


def load_solvated(n_bath):
    return Solvated(soft_spring(), n_bath)


def test_processes_carry_each_row_at_its_own_scale():
    network, rng = load_solvated(3), np.random.default_rng(7)
    x, scale = network.draws([300.0] * 3, 5, rng), rng.uniform(0.3, 1.0, (5, 3))
    v = 0.1 * rng.standard_normal(x.shape)
    sharded = ShardedCarrier(load_solvated, {"n_bath": 3}, 2)
    try:
        several = sharded(x, v, network.masses, 1e-3, 20, scale)
    finally:
        sharded.close()
    one = Carrier(network)(x, v, network.masses, 1e-3, 20, scale)
    assert np.array_equal(several[0], one[0]) and np.array_equal(several[1], one[1])
    assert np.abs(one[0] - Carrier(network)(x, v, network.masses, 1e-3, 20)[0]).max() > 1e-5


def test_the_ladders_of_a_region_are_over_its_own_atoms():
    numbers, masses = np.full(300, 8), np.full(300, 16.0)
    whole = Molecule("w", "", numbers, masses, np.array([[0, 1]]), np.ones(1), np.zeros((1, 300, 3)), np.zeros(1))
    region = replace(whole, region=np.arange(9))
    assert ex.possible_ladders(300.0, 600.0, region)[1] == rungs_between(300.0, 600.0, 9)
    assert len(ex.possible_ladders(300.0, 600.0, whole)[1]) > 4 * len(ex.possible_ladders(300.0, 600.0, region)[1])
