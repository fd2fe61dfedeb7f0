"""Delayed acceptance: a cheaper truth before the dear one; exact however wrong it is, and restored as one."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import kstest

from conftest import BatchPool, BondPotential, start_state
from kstep.errors import UserError
from kstep.forces import PhysicsSpec, physics_spec
from kstep.forces.openmm import MDConfig
from kstep.forces.pool import Truth
from kstep.forces.tblite import QMConfig
from kstep.molecules.prepare import prepare_smiles, system_xml_of
from kstep.runs import run_hybrid as run_module, run_network
from kstep.runs.counters import Tally
from kstep.runs.recorder import read_restart, write_restart
from kstep.runs.settings import HybridRun, settle_delay
from kstep.schemas import load_trajectory
from kstep.schemes.hybrid_config import HybridConfig
from kstep.schemes.state import per_replica
from kstep.units import kT
from test_impulse_checked import Springs
from test_nested import lengths, mean_and_error, nested, radial_mean, soft_spring, steps_of
from test_sampler import K_BOND, MASSES, R_BOND, SpringNetwork, pairs, spring


def middling_spring():
    """A cheaper truth that is wrong in its own way: too stiff, and too short by 3 %."""
    return BondPotential(MASSES, [(0, 1)], lambda r: 0.65 * K_BOND * (r - 0.97 * R_BOND) ** 2,
                         lambda r: 1.3 * K_BOND * (r - 0.97 * R_BOND))


class CheaperPool(BatchPool):
    """Energies alone; refuses what `refuses(energy (r,), call)` says."""

    def __init__(self, potential, refuses=None):
        super().__init__(potential)
        self.refuses, self.asked, self.n_asked = refuses, [], 0

    def evaluate(self, positions, rows=None, want_forces=True):
        assert want_forces is False
        self.asked.append(positions.copy())
        truth = super().evaluate(positions)
        self.n_asked += 1
        failed = np.zeros(len(positions), dtype=bool)
        if self.refuses is not None:
            failed = self.refuses(truth.energy, self.n_asked)
        return Truth(np.where(failed, np.nan, truth.energy), np.full_like(positions, np.nan), failed)


def delayed(cheaper, n_steps=1, *, network=None, **more):
    pool = cheaper if isinstance(cheaper, CheaperPool) else CheaperPool(cheaper)
    return nested(network or SpringNetwork(soft_spring()), **more).delayed_by(pool, n_steps)


@pytest.mark.parametrize("n_steps", [1, 3])
def test_the_truth_is_sampled_through_a_wrong_rung_and_the_identity_holds(n_steps):
    """Radial mean of the truth, by quadrature: the rung and the network would give others, 10 errors away and more."""
    truth, rng = spring(), np.random.default_rng(2)
    scheme = delayed(middling_spring(), n_steps, rungs_K=(300.0, 450.0), moves=1)
    state, tally, seen = start_state(BatchPool(truth), pairs(1500, rng)), None, []
    for step, (after, info) in enumerate(steps_of(scheme, BatchPool(truth), state, 60, seed=3)):
        if step >= 15:
            tally = tally or Tally(scheme)
            tally.add(after, info)
            seen.append(lengths(after.positions))
    mean, error = mean_and_error(np.array(seen))
    assert error < 2e-4
    assert mean == pytest.approx(radial_mean(truth.u, 300.0), abs=4 * error)
    for wrong in (middling_spring(), soft_spring()):
        assert abs(radial_mean(wrong.u, 300.0) - mean) > 10 * error
    summary = tally.summary()
    assert summary["mean_exp_minus_beta_dH"] == pytest.approx(1.0, abs=5 * summary["mean_exp_minus_beta_dH_error"])
    assert 0.2 < summary["figures"]["delayed_acceptance"] < 0.95 and 0.2 < summary["acceptance"] < 0.98
    assert "on the cheaper truth" in scheme.last_words(summary)


def test_a_ladder_of_two_cheaper_truths_is_exact_too():
    """Network, spring, spring, truth: each rung in the place of the network for the next."""
    truth, rng = spring(), np.random.default_rng(12)
    second = BondPotential(MASSES, [(0, 1)], lambda r: 0.45 * K_BOND * (r - 1.015 * R_BOND) ** 2,
                           lambda r: 0.9 * K_BOND * (r - 1.015 * R_BOND))
    scheme = delayed(middling_spring(), rungs_K=(300.0,), moves=1).delayed_by(CheaperPool(second), 2)
    seen = [lengths(after.positions) for after, _ in steps_of(
        scheme, BatchPool(truth), start_state(BatchPool(truth), pairs(1500, rng)), 50, seed=13)][12:]
    mean, error = mean_and_error(np.array(seen))
    assert error < 2e-4 and mean == pytest.approx(radial_mean(truth.u, 300.0), abs=4 * error)
    assert abs(radial_mean(second.u, 300.0) - mean) > 5 * error


def test_a_start_is_taken_as_it_is_and_then_each_stage_judges_its_own_difference():
    """By hand, n = 1: what the rung refuses is never asked of the truth, and both tests have dice of their own."""
    truth, cheaper, wrong, rng = spring(), middling_spring(), soft_spring(), np.random.default_rng(4)
    pool, dear, dice = CheaperPool(cheaper), [], []
    scheme = delayed(pool, network=SpringNetwork(wrong), rungs_K=(300.0,), moves=1)
    kept = scheme.propose

    def propose(*args):
        proposal = kept(*args)
        dice.append(proposal.extra["log_u"])
        return proposal

    scheme.propose = propose
    state = start_state(BatchPool(truth), pairs(300, rng))
    beta = 1 / kT(300.0)
    for step, (after, info) in enumerate(steps_of(scheme, BatchPool(truth), state, 8, seed=5,
                                                  observe=lambda proposal, truth: dear.append(proposal))):
        passed = np.isin(np.arange(300), dear[step].rows)
        assert info.attempts.tolist() == passed.astype(int).tolist() and info.delayed.sum(axis=0)[1] == passed.sum()
        assert np.array_equal(after.positions[~passed], state.positions[~passed])
        assert not step or np.array_equal(after.network_energy[~passed], state.network_energy[~passed])
        before, proposed = state.positions[passed], dear[step].positions
        end, begin = ((truth.batch(x)[0] - cheaper.batch(x)[0]) for x in (proposed, before))
        if step:
            taken = dice[step][passed] < -beta * (end - begin)
            assert np.allclose(info.delta_H[passed], end - begin, atol=1e-8) and (info.delta_H[~passed] == 0.0).all()
            assert np.array_equal(info.accepted[passed], taken) and info.accepted[~passed].all()
            assert 0.2 < taken.mean() < 1
        else:
            assert info.accepted.all() and passed.mean() > 0.9
        energies = after.network_energy[:, :1].ravel()
        assert np.allclose(energies, wrong.batch(after.positions)[0]) and np.allclose(
            after.network_energy.sum(axis=1), cheaper.batch(after.positions)[0])
        assert np.allclose(after.energy, truth.batch(after.positions)[0])
        state = after
    second = np.concatenate([np.exp(log_u[proposal.rows]) for log_u, proposal in zip(dice[1:], dear[1:])])
    assert kstest(second, "uniform").pvalue > 1e-3  # whom the first dice let pass, the second know nothing of


def test_a_call_of_the_cheaper_truth_that_fails_refuses_its_step_and_nothing_else():
    truth, rng = spring(), np.random.default_rng(6)
    pool = CheaperPool(middling_spring(), refuses=lambda energy, call: np.full(len(energy), call % 2 == 1))
    scheme = delayed(pool, 1, rungs_K=(300.0,), moves=1)
    state = start_state(BatchPool(truth), pairs(50, rng))
    steps = steps_of(scheme, BatchPool(truth), state, 4, seed=7)
    (first, info), (second, after_second), (third, _), _ = steps
    assert np.array_equal(first.positions, state.positions) and not info.accepted.any() and not info.attempts.any()
    assert after_second.accepted.mean() > 0.9 and not np.array_equal(second.positions, first.positions)  # still a start
    assert np.array_equal(third.positions, second.positions) and np.array_equal(third.energy, second.energy)


def test_a_bad_rung_costs_acceptance_alone():
    """A cheaper truth of twice the bond's stiffness, one that is the truth, and one that is the network."""
    truth, rng = spring(), np.random.default_rng(8)

    def shares(cheaper):
        scheme, state = delayed(cheaper, rungs_K=(300.0,), moves=1), start_state(BatchPool(truth), pairs(400, rng))
        tally = Tally(scheme)
        for step, (after, info) in enumerate(steps_of(scheme, BatchPool(truth), state, 12)):
            tally.add(after, info) if step > 2 else None
        found = tally.summary()
        return found["figures"]["delayed_acceptance"], found["acceptance"]

    first, second = shares(truth)
    assert second > 1 - 1e-9 and first < 0.95
    first, second = shares(soft_spring())
    assert first > 1 - 1e-9 and second < 0.95
    stiff = BondPotential(MASSES, [(0, 1)], lambda r: K_BOND * (r - R_BOND) ** 2, lambda r: 2 * K_BOND * (r - R_BOND))
    assert shares(stiff)[0] < first


@pytest.mark.parametrize("n_parts, n_steps", [(1, 2), (2, 1)])
def test_a_run_cut_at_a_restart_file_is_bit_equal_to_one_that_was_not(n_parts, n_steps, tmp_path):
    truth, start = spring(), pairs(6, np.random.default_rng(9))

    def scheme():
        return delayed(middling_spring(), n_steps, rungs_K=(300.0, 450.0))

    def on(state, rng, n):
        from kstep.runs.loop import macro_steps

        for state, _ in macro_steps(scheme(), BatchPool(truth), state, rng, n, n_parts=n_parts, pause=lambda d: d == 4):
            pass
        return state, rng

    whole, _ = on(start_state(BatchPool(truth), start), np.random.default_rng(10), 9)
    part, rng = on(start_state(BatchPool(truth), start), np.random.default_rng(10), 4)
    write_restart(tmp_path / "restart.npz", part, rng, {}, {})
    state, rng, _, _ = read_restart(tmp_path / "restart.npz", {})
    again, _ = on(state, rng, 5)
    for name, values in per_replica(whole).items():
        assert np.array_equal(values, getattr(again, name), equal_nan=True), name
    assert whole.network_energy.shape == (6, 2) and whole.rung_energy.shape == (6, 1, 2)


# whole runs


@pytest.fixture(scope="module")
def prepared():
    return prepare_smiles("O", "water")


@pytest.fixture(scope="module")
def spec(prepared):
    return physics_spec(prepared.molecule, MDConfig(), system_xml=system_xml_of(prepared))


@pytest.fixture
def sample(prepared, spec, monkeypatch):
    """sample(path, **settings): the metadata of a run of water on MMFF94, delayed by GFN1-xTB."""
    gfn1 = physics_spec(prepared.molecule, QMConfig(method="GFN1-xTB"))

    def run(path, *, delay=gfn1, resume=False, stop_after=None, **settings):
        network = Springs(0.02, prepared.molecule.conformers[0])
        network.device, network.metadata, asked, calls = "cpu", {}, network.forces, []

        def counted(x):
            calls.append(len(x))
            if stop_after is not None and len(calls) > stop_after:
                raise KeyboardInterrupt
            return asked(x)

        network.forces = counted
        monkeypatch.setattr(run_network, "load_network", lambda **_: network)
        hybrid = HybridConfig(**{**dict(
            scheme="nested", moves=2, k_steps=8, dt_fs=1.0, burn_in_steps=4, steps=10, replicas=3, temperature_K=300.0,
            inner="numpy", network_ladder_K=[300.0], checkpoint_interval=4, delayed_steps=2), **settings})
        job = HybridRun(prepared.molecule, spec, "mmff94", hybrid, None, path, seed=3, resume=resume, delay=delay)
        return run_module.run_hybrid(job, {}, {})

    return run


def test_a_whole_run_counts_the_calls_of_both_and_goes_on_bit_equal(sample, prepared, tmp_path):
    metadata = sample(tmp_path / "whole.npz")
    calls = metadata["true_calls_by_method"]
    assert set(calls) == {"mmff94", "GFN1-xTB"} and calls["mmff94"] == metadata["true_calls"]
    whole = load_trajectory(tmp_path / "whole.npz")
    production = int(whole.attempts[whole.frames_of("train")].sum())
    assert production == metadata["true_calls"] - metadata["true_calls_burn_in"] <= 30
    assert 14 * 2 * 3 * 0.8 < calls["GFN1-xTB"] <= 14 * 2 * 3
    assert metadata["delayed_with"] == "GFN1-xTB" and metadata["config"]["delayed_steps"] == 2
    assert metadata["k_steps"] == 16 and 0 < metadata["figures"]["delayed_acceptance"] <= 1
    with pytest.raises(KeyboardInterrupt):
        sample(tmp_path / "cut.npz", stop_after=120)
    again = sample(tmp_path / "cut.npz", resume=True)
    other = load_trajectory(tmp_path / "cut.npz")
    for key in ("pos", "Epot", "accepted", "attempts", "delta_H"):
        assert np.array_equal(getattr(whole, key), getattr(other, key), equal_nan=True), key
    assert again["true_calls_by_method"] == calls and again["tally"] == metadata["tally"]
    with pytest.raises(UserError, match="physics.delay"):  # another rung is another chain
        sample(tmp_path / "cut.npz", delay=None, delayed_steps=None)


def test_moves_are_tuned_for_the_step_that_the_cheaper_truth_judges(sample, tmp_path):
    report = sample(tmp_path / "tuned.npz", tune=True, moves=None, k_steps=None, dt_fs=1.0, network_ladder_K=None,
                    call_cost_s=0.02)["tuning"]
    assert report["cpu_s_per_cheaper_call"] > 0


@pytest.mark.parametrize("hybrid, delay, words", [
    ({"scheme": "nested", "delayed_steps": 2}, None, "name it with --delay-with"),
    ({"scheme": "metropolis"}, {}, "scheme metropolis does not ask a cheaper method first; .* take --scheme nested"),
    ({"scheme": "nested"}, {"method": "dear"}, "is dear, the truth itself"),
    ({"scheme": "nested"}, {"settings": {"charge": 1, "multiplicity": 2}},
     "cheap of --delay-with has charge 1, and the truth 0")])
def test_a_rung_that_does_not_fit_is_refused(water, hybrid, delay, words):
    dear = PhysicsSpec("tblite", water.numbers, water.masses, {"charge": 0, "multiplicity": 1}, "dear")
    cheaper = None if delay is None else replace(dear, **{"method": "cheap", **delay})
    with pytest.raises(UserError, match=words):
        settle_delay(HybridConfig(**hybrid), dear, cheaper)


def test_a_report_says_what_the_cheaper_method_cost(sample, tmp_path):
    from kstep.analysis.metrics.cost import Cost, cost_of

    sample(tmp_path / "run.npz")
    run = load_trajectory(tmp_path / "run.npz")
    cost = cost_of(run, run.metadata["acceptance"])
    assert cost["cheaper_calls"] == {"GFN1-xTB": run.metadata["true_calls_by_method"]["GFN1-xTB"]}
    assert "calls of GFN1-xTB" in Cost().lines({"cost": cost})
