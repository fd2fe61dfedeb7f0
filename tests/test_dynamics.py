"""The schemes on systems with known answers: order, reversibility, exact ensembles, restarts."""

import os
import signal
from dataclasses import replace

import numpy as np
import pytest

from conftest import BatchPool, BondPotential, ForceNetwork, start_state
from kstep.errors import PhysicsError
from kstep.runs.loop import macro_step, run
from kstep.runs.network_dynamics import Carrier, ShardedCarrier
from kstep.schemes import Jump, Metropolis, Nested, Plain
from kstep.schemes.jump import JumpLimits
from kstep.schemes.langevin import LangevinThermostat
from kstep.schemes.maxwell import degrees_of_freedom, draw_velocities
from kstep.schemes.network_ladder import NetworkLadder
from kstep.schemes.state import kinetic_energy
from kstep.schemes.velocity_verlet import velocity_verlet
from kstep.units import BOLTZMANN, kT
from test_sampler import SpringNetwork

K_BOND, R_BOND = 2.0e4, 0.15  # kJ/mol/nm^2, nm
KT = kT(300.0)


def harmonic_chain(masses=(12.0, 14.0, 1.0)):
    bonds = [(i, i + 1) for i in range(len(masses) - 1)]
    return BondPotential(np.array(masses), bonds, lambda r: 0.5 * K_BOND * (r - R_BOND) ** 2,
                         lambda r: K_BOND * (r - R_BOND))


def chain_positions(n_atoms, n_replicas, rng):
    x = np.zeros((n_replicas, n_atoms, 3))
    direction = rng.standard_normal((n_replicas, n_atoms, 3))
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    for i in range(1, n_atoms):
        x[:, i] = x[:, i - 1] + R_BOND * direction[:, i]
    return x


def radial_moments(u, low, high):
    """<r> and <r^2> of p(r) ~ r^2 exp(-u/kT) by quadrature."""
    r = np.linspace(low, high, 20001)
    weight = r**2 * np.exp(-(u(r) - u(r).min()) / KT)
    weight /= weight.sum()
    return r, weight


def test_maxwell_velocities_have_the_temperature_and_no_centre_of_mass_motion():
    masses = np.array([12.0, 1.0, 1.0, 16.0])
    v = draw_velocities(20000, masses, 300.0, np.random.default_rng(0))
    assert np.abs(np.einsum("rni,n->ri", v, masses)).max() < 1e-10
    assert 2 * kinetic_energy(v, masses).mean() / degrees_of_freedom(4) == pytest.approx(KT, rel=0.01)
    per_atom = (masses[:, None] * v**2).mean(axis=(0, 2))
    assert per_atom == pytest.approx(KT * (1 - masses / masses.sum()), rel=0.03)


@pytest.mark.parametrize("scheme, order, dt_fs", [
    (Plain, 2, 0.5),
])
def test_energy_error_falls_as_the_timestep_to_the_order(scheme, order, dt_fs):
    potential, rng = harmonic_chain(), np.random.default_rng(1)
    x = chain_positions(3, 20, rng)
    v = draw_velocities(20, potential.masses, 300.0, rng)
    fluctuation = []
    for refined in (1, 2):
        pool, totals = BatchPool(potential), []
        run(scheme(potential.masses, dt_fs * 1e-3 / refined), pool, start_state(pool, x, v), rng, 400 * refined,
            reporters=[lambda s, info, kept=totals: kept.append(
                s.energy + kinetic_energy(s.velocities, potential.masses))])
        fluctuation.append(np.std(totals, axis=0).mean())
    assert fluctuation[0] / fluctuation[1] == pytest.approx(2.0**order, rel=0.1)


@pytest.mark.parametrize("scheme", [Plain])
def test_dynamics_without_a_network_is_time_reversible_and_keeps_the_momentum(scheme):
    potential, rng = harmonic_chain(), np.random.default_rng(2)
    pool = BatchPool(potential)
    x, v = chain_positions(3, 4, rng), draw_velocities(4, potential.masses, 300.0, rng)
    scheme = scheme(potential.masses, 5e-4)
    forward = run(scheme, pool, start_state(pool, x, v), rng, 300)
    assert np.abs(np.einsum("rni,n->ri", forward.velocities, potential.masses)).max() < 1e-9
    back = run(scheme, pool, replace(forward, velocities=-forward.velocities), rng, 300)
    assert np.abs(back.positions - x).max() < 1e-11
    assert np.abs(back.velocities + v).max() < 1e-9


def test_velocity_verlet_equals_the_plain_scheme():
    potential, rng = harmonic_chain(), np.random.default_rng(3)
    pool = BatchPool(potential)
    x, v = chain_positions(3, 4, rng), draw_velocities(4, potential.masses, 300.0, rng)
    plain = run(Plain(potential.masses, 5e-4), pool, start_state(pool, x, v), rng, 50)
    x2, v2 = velocity_verlet(lambda y: potential.batch(y)[1], x, v, 1 / potential.masses[None, :, None], 5e-4, 50)
    assert np.abs(plain.positions - x2).max() < 1e-12 and np.abs(plain.velocities - v2).max() < 1e-10


def nested(carry, masses, dt_ps, k_steps, temperature_K):
    """Three moves and a ladder of two rungs, at the arguments that the other samplers take."""
    ladder = NetworkLadder(carry.network, carry, masses, dt_ps, (temperature_K, 1.5 * temperature_K), n_moves=3,
                           move_steps=max(1, k_steps // 3))
    return Nested(ladder, k_steps)


EXACT = [
    Metropolis,
    nested,
]  # schemes of which nothing but the true potential decides what they sample


def sample_exactly(potential, network, masses, x, n_steps, k=15, dt_ps=5e-4, seed=0, kind=Metropolis):
    rng, pool = np.random.default_rng(seed), BatchPool(potential)
    scheme = kind(Carrier(network), masses, dt_ps, k, 300.0)
    frames, accepted, delta = [], [], []

    def record(s, info):
        frames.append(s.positions)
        accepted.append(info.accepted)
        delta.append(info.delta_H)

    run(scheme, pool, start_state(pool, x), rng, n_steps, reporters=[record])
    return np.array(frames), np.array(accepted), np.array(delta)


def standard_error(series):
    """Error of the mean over independent replicas; series (T,R)."""
    means = series.mean(axis=0)
    return means.mean(), means.std(ddof=1) / np.sqrt(len(means))


@pytest.mark.parametrize("kind", EXACT)
def test_a_harmonic_bond_is_sampled_exactly_with_a_wrong_network(kind):
    potential = harmonic_chain((12.0, 1.0))
    wrong = BondPotential(potential.masses, potential.bonds, lambda r: 0.35 * K_BOND * (r - 1.03 * R_BOND) ** 2,
                          lambda r: 0.7 * K_BOND * (r - 1.03 * R_BOND))
    x = chain_positions(2, 256, np.random.default_rng(4))
    frames, accepted, _ = sample_exactly(potential, SpringNetwork(wrong), potential.masses, x, 600, kind=kind)
    assert 0.2 < accepted.mean() < 0.97  # the network is wrong enough to matter
    r = np.linalg.norm(frames[100:, :, 0] - frames[100:, :, 1], axis=-1)
    grid, weight = radial_moments(potential.u, 0.05, 0.3)
    for power in (1, 2):
        mean, error = standard_error(r**power)
        assert abs(mean - (weight * grid**power).sum()) < 4 * error
        assert error < 0.01 * mean


@pytest.mark.parametrize("kind", EXACT)
def test_a_double_well_is_sampled_exactly_with_a_wrong_network(kind):
    barrier, centre, half = 1.5 * KT, 0.30, 0.06

    def u(r):
        return barrier * (((r - centre) / half) ** 2 - 1) ** 2

    def du(r):
        return barrier * 4 * (((r - centre) / half) ** 2 - 1) * (r - centre) / half**2

    potential = BondPotential(np.array([12.0, 12.0]), [(0, 1)], u, du)
    wrong = BondPotential(potential.masses, potential.bonds, lambda r: 0.8 * u(r) + 20.0 * r,
                          lambda r: 0.8 * du(r) + 20.0)
    x = np.zeros((256, 2, 3))
    x[:, 1, 0] = centre - half
    frames, accepted, _ = sample_exactly(potential, SpringNetwork(wrong), potential.masses, x, 900, 30, 2e-3,
                                         kind=kind)
    assert accepted.mean() < 0.98
    r = np.linalg.norm(frames[150:, :, 0] - frames[150:, :, 1], axis=-1)
    grid, weight = radial_moments(u, 0.1, 0.55)
    outer, error = standard_error((r > centre).astype(float))
    assert abs(outer - weight[grid > centre].sum()) < 4 * error
    assert error < 0.02


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("masses", [(12.0, 16.0, 1.0), (1.0, 40.0, 4.0)])
def test_the_free_angle_of_a_triatomic_is_uniform_under_any_masses(masses, kind):
    potential = harmonic_chain((12.0, 16.0, 1.0))
    wrong = BondPotential(potential.masses, potential.bonds, lambda r: 0.4 * K_BOND * (r - R_BOND) ** 2,
                          lambda r: 0.8 * K_BOND * (r - R_BOND))
    x = chain_positions(3, 400, np.random.default_rng(5))
    frames, _, _ = sample_exactly(potential, SpringNetwork(wrong), np.array(masses), x, 500, 60, kind=kind)
    a, b = frames[50:, :, 0] - frames[50:, :, 1], frames[50:, :, 2] - frames[50:, :, 1]
    cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    for series, exact in ((cosine, 0.0), (cosine**2, 1 / 3), (cosine**4, 1 / 5)):
        mean, error = standard_error(series)
        assert abs(mean - exact) < 4 * error
        assert error < 0.02


def test_metropolis_with_the_exact_force_rejects_only_the_integrators_error():
    potential = harmonic_chain()
    x = chain_positions(3, 128, np.random.default_rng(6))
    spread = []
    for dt_ps, k in ((5e-4, 40), (2.5e-4, 80)):
        _, accepted, delta = sample_exactly(potential, SpringNetwork(potential), potential.masses, x, 100, k, dt_ps)
        spread.append(delta[20:].std())
        assert accepted[20:].mean() > 0.97
    assert spread[0] / spread[1] == pytest.approx(4.0, rel=0.25)


@pytest.mark.parametrize("kind", EXACT)
def test_proposals_have_unit_mean_boltzmann_factor(kind):
    potential = harmonic_chain((12.0, 1.0))
    wrong = BondPotential(potential.masses, potential.bonds, lambda r: 0.4 * K_BOND * (r - R_BOND) ** 2,
                          lambda r: 0.8 * K_BOND * (r - R_BOND))
    x = chain_positions(2, 256, np.random.default_rng(7))
    _, _, delta = sample_exactly(potential, SpringNetwork(wrong), potential.masses, x, 400, kind=kind)
    mean, error = standard_error(np.exp(-delta[100:] / KT))
    assert abs(mean - 1) < 4 * error and error < 0.02


def test_metropolis_rejects_a_failed_true_call_and_a_diverged_proposal():
    potential = harmonic_chain((12.0, 1.0))
    x = chain_positions(2, 8, np.random.default_rng(8))
    frames, accepted, delta = sample_exactly(potential, ForceNetwork(lambda y: y * np.nan), potential.masses, x, 3)
    assert not accepted.any() and np.isinf(delta).all()
    frames, accepted, delta = sample_exactly(potential, ForceNetwork(lambda y: y * 1e9), potential.masses, x, 3)
    assert not accepted.any() and (delta > 1e6).all()
    assert np.array_equal(frames[-1], x)


def test_metropolis_refuses_a_jump_network():
    class OnlyJumps:
        spans = [4]

        def jump(self, *_):
            raise AssertionError

    with pytest.raises(ValueError, match="reversible"):
        Metropolis(Carrier(OnlyJumps()), np.ones(2), 1e-3, 4, 300.0)


def test_replicas_start_from_every_conformer_and_mostly_from_the_likely_ones():
    from kstep.runs.settings import share_replicas

    share = share_replicas(np.array([0.0, 0.0, 8.0, 8.0]), 64, 300.0)
    assert np.bincount(share).tolist() == [31, 31, 1, 1]
    assert np.bincount(share_replicas(np.array([0.0, KT * np.log(3.0)]), 40, 300.0)).tolist() == [30, 10]
    assert share_replicas(np.array([0.0, 1.0, 50.0]), 2, 300.0).tolist() == [0, 1]
    assert share_replicas(np.array([5.0]), 3, 300.0).tolist() == [0, 0, 0]


def load_spring(stiffness):
    potential = harmonic_chain((12.0, 1.0))
    return ForceNetwork(lambda y: stiffness * potential.batch(y)[1])


def test_replicas_dealt_out_to_processes_move_as_in_one():
    potential, rng = harmonic_chain((12.0, 1.0)), np.random.default_rng(14)
    x, v = chain_positions(2, 5, rng), draw_velocities(5, potential.masses, 300.0, rng)
    sharded = ShardedCarrier(load_spring, {"stiffness": 0.5}, 2)
    try:
        several = sharded(x, v, potential.masses, 5e-4, 20)
        os.kill(sharded._workers[1].process.pid, signal.SIGKILL)  # another one takes its place, and carries the same
        again = sharded(x, v, potential.masses, 5e-4, 20)
        processes = [worker.process for worker in sharded._workers]
    finally:
        sharded.close()
    # a process that ends itself right after must not find any of them waiting for work
    assert np.array_equal(several[0], again[0]) and np.array_equal(several[1], again[1])
    assert len(processes) == 2 and not any(process.is_alive() for process in processes)
    one = Carrier(load_spring(0.5))(x, v, potential.masses, 5e-4, 20)
    assert np.array_equal(several[0], one[0]) and np.array_equal(several[1], one[1])


def load_noted_spring(stiffness, notes):
    with open(notes, "a") as handle:
        handle.write(f"{stiffness}\n")
    return load_spring(stiffness)


def test_a_network_is_sent_once_to_each_process_and_changed_in_all(tmp_path):
    potential, rng, notes = harmonic_chain((12.0, 1.0)), np.random.default_rng(15), tmp_path / "notes"
    x, v = chain_positions(2, 5, rng), draw_velocities(5, potential.masses, 300.0, rng)
    sharded = ShardedCarrier(load_noted_spring, {"stiffness": 0.5, "notes": str(notes)}, 2)
    try:
        for n in (1, 5, 5):  # one process alone, then both
            several = sharded(x[:n], v[:n], potential.masses, 5e-4, 20)
        assert notes.read_text().split() == ["0.5"] * 2
        assert np.array_equal(several[0], Carrier(load_spring(0.5))(x, v, potential.masses, 5e-4, 20)[0])
        sharded.change_network(None, {"stiffness": 0.8, "notes": str(notes)})
        for _ in range(2):
            several = sharded(x, v, potential.masses, 5e-4, 20)
        assert notes.read_text().split() == ["0.5"] * 2 + ["0.8"] * 2
        assert np.array_equal(several[0], Carrier(load_spring(0.8))(x, v, potential.masses, 5e-4, 20)[0])
        assert sharded.cpu_s > 0
    finally:
        sharded.close()


def exact_jump(potential, dt_ps):
    """The flow map itself as a network: x_k and v_{k-1/2} of velocity Verlet on the true force."""

    def jump(x, v, f, span):
        x_k, v_half = np.empty_like(x), np.empty_like(v)
        for row, n in enumerate(span):
            y, w = velocity_verlet(lambda z: potential.batch(z)[1], x[row:row + 1], v[row:row + 1],
                                   1 / potential.masses[None, :, None], dt_ps, int(n))
            x_k[row] = y[0]
            v_half[row] = w[0] - 0.5 * dt_ps * potential.batch(y)[1][0] / potential.masses[:, None]
        return x_k, v_half

    return jump


def jump_scheme(potential, network, dt_ps, k, **limits):
    defaults = dict(max_disp_nm=0.1, max_bond_nm=np.full(len(potential.bonds), 0.3), max_energy_jump=50.0,
                    max_attempts=3)
    return Jump(network, potential.masses, potential.bonds, dt_ps, k, JumpLimits(**{**defaults, **limits}))


def test_jump_with_the_exact_map_is_plain_at_a_kth_of_the_true_calls():
    potential, rng = harmonic_chain(), np.random.default_rng(9)
    x, v = chain_positions(3, 5, rng), draw_velocities(5, potential.masses, 300.0, rng)
    plain_pool, pool = BatchPool(potential), BatchPool(potential)
    plain = run(Plain(potential.masses, 2.5e-4), plain_pool, start_state(plain_pool, x, v), rng, 40)
    scheme = jump_scheme(potential, ForceNetwork(None, exact_jump(potential, 2.5e-4)), 2.5e-4, 4)
    infos = []
    hybrid = run(scheme, pool, start_state(pool, x, v), rng, 10, reporters=[lambda s, info: infos.append(info)])
    assert np.abs(plain.positions - hybrid.positions).max() < 1e-12
    assert np.abs(plain.velocities - hybrid.velocities).max() < 1e-10
    assert hybrid.step == plain.step == 40
    assert pool.true_calls == 5 * 11 and plain_pool.true_calls == 5 * 41
    for info in infos:
        assert (info.inner_steps == 4).all() and (info.attempts == 1).all() and info.accepted.all()


def test_a_refused_jump_is_retried_shorter_and_then_done_by_plain_steps():
    potential, rng = harmonic_chain(), np.random.default_rng(10)
    x, v = chain_positions(3, 2, rng), draw_velocities(2, potential.masses, 300.0, rng)
    asked = []

    def broken(x, v, f, span):
        asked.append(span.copy())
        return x + 1.0, v

    pool = BatchPool(potential)
    scheme = jump_scheme(potential, ForceNetwork(None, broken, spans=(8, 4, 2)), 2.5e-4, 8)
    hybrid, info = macro_step(scheme, pool, start_state(pool, x, v), rng)
    plain = run(Plain(potential.masses, 2.5e-4), BatchPool(potential), start_state(pool, x, v), rng, 8)
    assert [list(s) for s in asked] == [[8, 8], [4, 4], [2, 2]]
    assert np.array_equal(hybrid.positions, plain.positions) and np.array_equal(hybrid.velocities, plain.velocities)
    assert (info.attempts == 3 + 8).all() and (info.failures == 3).all() and (info.inner_steps == 0).all()
    assert not info.accepted.any()


def test_a_jump_that_fails_once_finishes_the_stretch_with_halved_jumps():
    potential, rng = harmonic_chain(), np.random.default_rng(11)
    x, v = chain_positions(3, 2, rng), draw_velocities(2, potential.masses, 300.0, rng)
    exact = exact_jump(potential, 2.5e-4)

    def long_jumps_fail(x, v, f, span):
        x_k, v_half = exact(x, v, f, span)
        x_k[span == 8] += np.nan
        return x_k, v_half

    pool = BatchPool(potential)
    scheme = jump_scheme(potential, ForceNetwork(None, long_jumps_fail, spans=(8, 4, 2)), 2.5e-4, 8)
    hybrid, info = macro_step(scheme, pool, start_state(pool, x, v), rng)
    plain = run(Plain(potential.masses, 2.5e-4), BatchPool(potential), start_state(pool, x, v), rng, 8)
    assert np.abs(hybrid.positions - plain.positions).max() < 1e-12
    assert (info.attempts == 3).all() and (info.inner_steps == 8).all()


def test_jump_is_refused_when_the_true_energy_jumps_or_a_bond_stretches():
    potential, rng = harmonic_chain(), np.random.default_rng(12)
    x, v = chain_positions(3, 3, rng), draw_velocities(3, potential.masses, 300.0, rng)
    exact = exact_jump(potential, 2.5e-4)
    pool = BatchPool(potential)
    for limits in ({"max_energy_jump": 1e-9}, {"max_bond_nm": np.full(2, 0.1)}, {"max_disp_nm": 1e-6}):
        _, info = macro_step(jump_scheme(potential, ForceNetwork(None, exact), 2.5e-4, 4, **limits), pool,
                             start_state(pool, x, v), rng)
        assert (info.failures > 0).all(), limits


def test_plain_stops_with_a_sentence_when_the_true_physics_fails():
    potential = harmonic_chain((12.0, 1.0))
    pool = BatchPool(potential)
    state = start_state(pool, chain_positions(2, 2, np.random.default_rng(0)))

    class Broken(BatchPool):
        def evaluate(self, positions, rows=None):
            truth = super().evaluate(positions)
            return replace(truth, failed=np.array([False, True]), messages=("", "SCF not converged"))

    with pytest.raises(PhysicsError, match="replica 1 broke at step 0: SCF not converged"):
        macro_step(Plain(potential.masses, 1e-3), Broken(potential), state, np.random.default_rng(0))


def test_langevin_around_plain_samples_the_canonical_ensemble():
    import physical_validation
    potential, rng = harmonic_chain((12.0, 14.0, 16.0)), np.random.default_rng(13)
    pool = BatchPool(potential)
    n = 200
    state = start_state(pool, chain_positions(3, n, rng), draw_velocities(n, potential.masses, 300.0, rng))
    thermostat = LangevinThermostat(300.0, 20.0, potential.masses)
    kinetic, stretch = [], []

    def record(s, info):
        if s.step % 400 == 0 and s.step >= 1200:
            kinetic.append(kinetic_energy(s.velocities, potential.masses))
            stretch.append(s.energy)

    final = run(Plain(potential.masses, 5e-4), pool, state, rng, 1200 + 400 * 14, thermostat=thermostat,
                reporters=[record])
    assert np.abs(np.einsum("rni,n->ri", final.velocities, potential.masses)).max() < 1e-9
    kinetic = np.concatenate(kinetic)
    deviation = physical_validation.kinetic_energy.distribution(
        simulation_data(physical_validation, kinetic, 6), strict=False, verbosity=0)
    assert max(deviation) < 3.5
    grid, weight = radial_moments(lambda r: 0.5 * K_BOND * (r - R_BOND) ** 2, 0.05, 0.25)
    expected = 2 * (weight * 0.5 * K_BOND * (grid - R_BOND) ** 2).sum()
    mean, error = standard_error(np.array(stretch))
    assert abs(mean - expected) < 4 * error


def simulation_data(physical_validation, kinetic, n_dof):
    data = physical_validation.data
    return data.SimulationData(
        units=data.UnitData(kb=BOLTZMANN, energy_str="kJ/mol", energy_conversion=1.0, length_str="nm",
                            length_conversion=1.0, volume_str="nm^3", volume_conversion=1.0, temperature_str="K",
                            temperature_conversion=1.0, pressure_str="bar", pressure_conversion=1.0, time_str="ps",
                            time_conversion=1.0),
        ensemble=data.EnsembleData(ensemble="NVT", natoms=n_dof // 3 + 1, volume=1.0, temperature=300.0),
        system=data.SystemData(natoms=n_dof // 3 + 1, nconstraints=0, ndof_reduction_tra=3, ndof_reduction_rot=0),
        observables=data.ObservableData(kinetic_energy=kinetic, potential_energy=kinetic, total_energy=kinetic,
                                        volume=np.ones_like(kinetic)))
