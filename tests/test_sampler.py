"""What surrounds the Metropolis test: half-batches, lengths, ladders, masses, tuning."""

import numpy as np
import pytest

from conftest import BatchPool, BondPotential, ForceNetwork, start_state
from kstep.errors import UserError
from kstep.runs import tuning as tuning
from kstep.runs.loop import Clock, macro_steps, run
from kstep.runs.network_dynamics import Carrier
from kstep.schemes import Metropolis, Plain
from kstep.schemes.hybrid_config import HybridConfig
from kstep.schemes.ladder import TemperatureLadder
from kstep.schemes.maxwell import draw_velocities
from kstep.schemes.metropolis import check_ladder
from kstep.schemes.state import Info, State, join, per_replica
from kstep.units import BOLTZMANN, kT

K_BOND, R_BOND = 2.0e4, 0.15
MASSES = np.array([12.0, 1.0])
LADDER = TemperatureLadder((300.0,))


def spring(masses=MASSES, stiffness=K_BOND):
    bonds = [(i, i + 1) for i in range(len(masses) - 1)]
    return BondPotential(np.asarray(masses), bonds, lambda r: 0.5 * stiffness * (r - R_BOND) ** 2,
                         lambda r: stiffness * (r - R_BOND))


class SpringNetwork(ForceNetwork):
    """Bonds as a network: forces for the carrier, which has the replicas last; energies for what tunes it."""

    native = staticmethod(lambda array: np.array(np.moveaxis(array, 0, -1), np.float64, order="C"))
    numpy = staticmethod(lambda array: np.moveaxis(array, -1, 0).copy())

    def __init__(self, potential):
        super().__init__(potential.forces_replicas_last)
        self.energy_and_forces = potential.batch


def pairs(n, rng):
    x = np.zeros((n, 2, 3))
    x[:, 1] = R_BOND * rng.standard_normal((n, 3))
    x[:, 1] *= R_BOND / np.linalg.norm(x[:, 1], axis=-1, keepdims=True)
    return x


class LatePool(BatchPool):
    """Answers only when collected, and keeps the order of what was asked and answered."""

    def __init__(self, potential):
        super().__init__(potential)
        self.log = []

    def submit(self, positions, rows=None):
        self.log.append(("ask", int(rows[0])))
        return positions, rows

    def collect(self, ticket):
        self.log.append(("answer", int(ticket[1][0])))
        return self.evaluate(*ticket)


def test_while_one_half_waits_for_the_physics_the_other_is_carried():
    pool, rng = LatePool(spring()), np.random.default_rng(0)
    scheme = Metropolis(Carrier(SpringNetwork(spring())), MASSES, 5e-4, 5, 300.0)
    state, clock = start_state(pool, pairs(6, rng)), Clock()
    states = list(macro_steps(scheme, pool, state, rng, 3, n_parts=2, clock=clock, pause=lambda done: done == 2))
    one, two = ("ask", 0), ("ask", 3)
    A, B = ("answer", 0), ("answer", 3)
    # step 1 asks for the next step of a half before the other half is answered; nothing is in flight at the pause
    assert pool.log == [one, two, A, one, B, two, A, B, one, two, A, B]
    assert [s.step for s, _ in states] == [5, 10, 15] and len(states) == 3
    assert pool.true_calls == 6 * 4 and clock.network_s > 0


def test_half_batches_sample_the_same_distribution_and_restart_at_a_pause():
    potential = spring()
    scheme = Metropolis(Carrier(SpringNetwork(spring(stiffness=0.6 * K_BOND))), MASSES, 5e-4, 6, 300.0)
    pool = BatchPool(potential)
    start = start_state(pool, pairs(8, np.random.default_rng(1)))
    rng = np.random.default_rng(2)
    whole = list(macro_steps(scheme, pool, start, rng, 6, n_parts=2, pause=lambda n: n == 4))
    first = np.random.default_rng(2)
    steps = macro_steps(scheme, pool, start, first, 6, n_parts=2, pause=lambda n: n == 4)
    for _ in range(4):
        state, _ = next(steps)
    kept = first.bit_generator.state
    again = np.random.default_rng()
    again.bit_generator.state = kept
    resumed = list(macro_steps(scheme, pool, state, again, 2, n_parts=2))
    for own, other in zip(resumed[-1], whole[-1]):
        for name, value in per_replica(own).items():
            assert np.array_equal(value, getattr(other, name)), name


def test_every_true_call_is_seen_also_of_rejected_proposals():
    pool, rng, seen = BatchPool(spring()), np.random.default_rng(3), []
    scheme = Metropolis(Carrier(ForceNetwork(lambda x: np.zeros_like(x))), MASSES, 5e-3, 8, 300.0)
    state = start_state(pool, pairs(10, rng))
    *_, (_, last) = macro_steps(scheme, pool, state, rng, 3, n_parts=2, observe=lambda p,
                                t: seen.append((p.positions, t.energy)))
    assert sum(len(e) for _, e in seen) == 30 and not last.accepted.all()
    for x, energy in seen:
        assert np.allclose(spring().batch(x)[0], energy)


def test_parts_are_the_state_and_join_to_it():
    pool = BatchPool(spring())
    state = start_state(pool, pairs(5, np.random.default_rng(4)))
    parts = [state.part(slice(0, 2)), state.part(slice(2, 5))]
    for whole, joined in ((state, join(parts)),
                          (Info.begin(state, 3, MASSES), join([Info.begin(part, 3, MASSES) for part in parts]))):
        for name, value in vars(whole).items():
            assert np.array_equal(value, getattr(joined, name), equal_nan=name == "delta_H"), name


def radial_mean(temperature_K):
    r = np.linspace(0.05, 0.4, 20001)
    weight = r**2 * np.exp(-0.5 * K_BOND * (r - R_BOND) ** 2 / kT(temperature_K))
    return (r * weight).sum() / weight.sum()


@pytest.mark.parametrize("masses", [MASSES, np.array([12.0, 4.0])])
def test_random_lengths_are_exact_with_a_wrong_network_and_cannot_resonate(masses):
    """k steps of exactly half a period bring the bond back to its mirror image for ever; random ones do not."""
    wrong = SpringNetwork(spring(stiffness=0.7 * K_BOND))
    rng, pool = np.random.default_rng(5), BatchPool(spring())
    scheme = Metropolis(Carrier(wrong), masses, 1e-3, 20, 300.0, length_law="uniform")
    lengths, means = [], []

    def record(s, info):
        lengths.append(info.inner_steps[0])
        means.append(np.linalg.norm(s.positions[:, 0] - s.positions[:, 1], axis=-1))

    run(scheme, pool, start_state(pool, pairs(400, rng)), rng, 400, reporters=[record])
    lengths = np.array(lengths)
    assert lengths.min() >= 1 and lengths.max() <= 39 and np.std(lengths) > 8
    assert lengths.mean() == pytest.approx(20, abs=2)
    chain = np.array(means)[50:].mean(axis=0)
    assert abs(chain.mean() - radial_mean(300.0)) < 4 * chain.std(ddof=1) / np.sqrt(len(chain))


def double_well():
    """A bond with minima at 0.14 and 0.24 nm and 26 kJ/mol between them: ten kT at 300 K."""
    height, middle, half = 26.0, 0.19, 0.05
    return BondPotential(np.array([12.0, 12.0]), [(0, 1)],
                         lambda r: height * (((r - middle) / half) ** 2 - 1.0) ** 2,
                         lambda r: 4.0 * height * (((r - middle) / half) ** 2 - 1.0) * (r - middle) / half**2)


def populations(temperature_K):
    r = np.linspace(0.1, 0.3, 40001)
    weight = r**2 * np.exp(-double_well().u(r) / kT(temperature_K))
    return weight[r > 0.19].sum() / weight.sum()


def sample_double_well(ladder, n_steps, n_replicas, network=None):
    potential = double_well()
    pool, rng = BatchPool(potential), np.random.default_rng(6)
    scheme = Metropolis(Carrier(network or SpringNetwork(potential)), potential.masses, 1e-3, 30, 300.0,
                        length_law="uniform", ladder=TemperatureLadder(ladder))
    x = np.zeros((n_replicas, 2, 3))
    x[:, 1, 0] = 0.14  # all in the inner well
    far, swapped = [], []

    def record(s, info):
        far.append(np.linalg.norm(s.positions[:, 1] - s.positions[:, 0], axis=-1) > 0.19)
        swapped.append(info.swapped)

    run(scheme, pool, start_state(pool, x), rng, n_steps, reporters=[record])
    return np.array(far), np.array(swapped)


def test_tempering_crosses_a_barrier_that_300_K_alone_does_not_and_stays_exact():
    alone, _ = sample_double_well((300.0,), 600, 32)
    assert alone.mean() < 0.05  # it should be 0.75
    ladder = (300.0, 520.0, 900.0, 1600.0)
    far, swapped = sample_double_well(ladder, 3000, 32 * 4)
    for rung, temperature_K in enumerate(ladder):
        chains = far[600:, rung::4].mean(axis=0)
        assert abs(chains.mean() - populations(temperature_K)) < 4 * chains.std(ddof=1) / np.sqrt(len(chains)), rung
    offered = swapped[:, 0::4]
    assert 0.2 < (offered[offered >= 0] == 1).mean() < 0.95
    assert (swapped[0::2, 1::4] == -1).all() and (swapped[:, 3::4] == -1).all()  # pairs take turns


def test_a_swap_with_the_wrong_sign_would_be_seen():
    """Two rungs of a harmonic energy: exchanges alone must keep both canonical."""
    rng = np.random.default_rng(7)
    temperatures, n = (300.0, 600.0), 4000
    ladder = TemperatureLadder(temperatures)
    energy = (rng.gamma(3.0, size=(n, 2)) * kT(np.array(temperatures))).ravel()
    x = rng.standard_normal((2 * n, 2, 3))
    after, swapped = ladder.swap(State(x, x.copy(), energy, x.copy()), 0, rng)
    moved = swapped[0::2] == 1
    assert 0.2 < moved.mean() < 0.9
    for rung, temperature_K in enumerate(temperatures):
        own = after.energy[rung::2]
        assert own.mean() == pytest.approx(3.0 * kT(temperature_K), abs=4 * own.std() / np.sqrt(n))
    assert np.array_equal(after.positions[0::2][moved], x[1::2][moved])
    assert np.array_equal(after.forces[0::2][moved], x[1::2][moved])
    assert np.array_equal(after.velocities, x)  # momenta belong to the rung


def test_velocities_of_a_ladder_have_the_temperature_of_their_rung():
    ladder = TemperatureLadder((300.0, 700.0))
    v = draw_velocities(8000, np.array([12.0, 1.0, 16.0]), ladder.of(8000), np.random.default_rng(8))
    kinetic = 0.5 * np.einsum("rni,n->r", v**2, np.array([12.0, 1.0, 16.0]))
    for rung, temperature_K in enumerate(ladder.temperatures_K):
        assert 2 * kinetic[rung::2].mean() / (6 * BOLTZMANN) == pytest.approx(temperature_K, rel=0.05)


def test_the_timestep_is_the_longest_that_the_integrator_allows():
    """Heavier atoms allow a longer timestep, in proportion to the square root of their mass."""
    potential, rng = spring((12.0, 1.0), 3.0e5), np.random.default_rng(9)
    network, chosen = SpringNetwork(potential), {}
    for mass in (1.0, 4.0):
        masses = np.array([12.0, mass])
        x = tuning.thermalise(network, Carrier(network), pairs(64, rng), masses, LADDER, rng)
        report = tuning.tune(network, Carrier(network), CountedPool(potential), x, masses,
                             LADDER, rng, dt_fs=None, k_steps=None, use_hessian=False, wanted_acceptance=0.95,
                             shortest_mean_fs=50.0)
        trials = {float(dt): a for dt, a in report["integrator_acceptance"].items()}
        assert trials[report["dt_fs"]] >= 0.95 and min(trials.values()) < 0.95
        assert report["k_steps"] * report["dt_fs"] >= 49.0
        chosen[mass] = report["dt_fs"]
    assert 1.4 < chosen[4.0] / chosen[1.0] < 2.6


def test_trials_of_a_single_replica_are_made_side_by_side():
    """One after the other they took minutes: a network is as long at one trajectory as at ten."""
    network, rows = SpringNetwork(spring()), []

    def carry(x, *arguments):
        rows.append(len(x))
        return Carrier(network)(x, *arguments)

    one = pairs(1, np.random.default_rng(4))
    found = [tuning.integrator_acceptance(network, carry, x, MASSES, T, 4.0, np.random.default_rng(5))
             for x, T in ((one, np.array([300.0])), (one, 300.0), (np.repeat(one, 16, axis=0), np.full(16, 300.0)))]
    assert found[0] == found[1] == found[2] and rows == [16] * 48


class CountedPool(BatchPool):
    cpu_s = 0.0


def test_the_length_follows_from_the_costs(monkeypatch):
    potential, rng = spring(), np.random.default_rng(10)
    network = SpringNetwork(potential)
    monkeypatch.setattr(tuning, "measure_costs", lambda *a, **k: tuning.Costs(true_call_s=9e-3, inner_step_s=1e-5))
    report = tuning.tune(network, Carrier(network), CountedPool(potential), pairs(4, rng), MASSES, LADDER, rng,
                         dt_fs=1.0, k_steps=None, use_hessian=False, wanted_acceptance=0.9, shortest_mean_fs=200.0)
    assert report["k_steps"] == 900 and report["dt_fs"] == 1.0 and report["integrator_acceptance"] == {}


def test_what_tuning_samples_costs_no_true_call():
    potential, rng = spring(), np.random.default_rng(11)
    network = SpringNetwork(potential)
    x = tuning.thermalise(network, Carrier(network), pairs(600, rng), MASSES, LADDER, rng, n_proposals=30, n_steps=25)
    r = np.linalg.norm(x[:, 0] - x[:, 1], axis=-1)
    assert r.std() == pytest.approx(np.sqrt(kT(300.0) / K_BOND), rel=0.1)  # from the minimum to a thermal spread


def test_hessian_masses_make_every_atom_equally_fast():
    """A stiff and a soft bond: the atom on the stiff one gets the larger mass; the sum stays."""
    masses = np.array([12.0, 12.0, 1.0])
    potential = BondPotential(masses, [(0, 1), (1, 2)], lambda r: 0.5 * np.array([4.0, 1.0]) * 1e4 * (r - R_BOND) ** 2,
                              lambda r: np.array([4.0, 1.0]) * 1e4 * (r - R_BOND))
    x = np.zeros((40, 3, 3))
    x[:, 1, 0], x[:, 2, 0] = R_BOND, 2 * R_BOND
    found = tuning.hessian_masses(SpringNetwork(potential), x, masses)
    assert found.sum() == pytest.approx(25.0)
    assert found / found.sum() == pytest.approx([0.4, 0.5, 0.1], abs=1e-6)  # 4 : 4 + 1 : 1


def test_plain_does_not_care_about_half_batches():
    potential, rng = spring(), np.random.default_rng(12)
    x = pairs(6, rng)
    ends = []
    for n_parts in (1, 2):
        pool = BatchPool(potential)
        ends.append(run(Plain(MASSES, 5e-4), pool, start_state(pool, x), rng, 20, n_parts=n_parts))
    assert np.array_equal(ends[0].positions, ends[1].positions)


def test_a_ladder_that_the_default_replicas_do_not_fit_says_how_many_they_are():
    with pytest.raises(UserError, match="^16 replicas cannot be dealt out evenly to the 3 rungs"):
        check_ladder(HybridConfig(scheme="metropolis", tempering_K=[300.0, 400.0, 500.0]))
