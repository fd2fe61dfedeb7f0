"""Frames that weigh: where weights come from, that averages under them are right, that every reader heeds them."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import genpareto

import synthetic
from conftest import BatchPool, BondPotential, start_state
from kstep.analysis.judge.compare import compare
from kstep.analysis.judge.verdict import Verdict
from kstep.analysis.measure.fitted_tail import FittedTail
from kstep.analysis.measure.profile import characterise
from kstep.analysis.measure.samples import Series, by_errors, common_rotamers, series_of
from kstep.analysis.measure.statistics import estimate_means, split_r_hat
from kstep.analysis.show.formats import export, to_atoms, to_mdtraj
from kstep.analysis.show.plots import draw_energy
from kstep.analysis.show.tables import table
from kstep.errors import UserError
from kstep.importance import diagnose, effective_share, in_words, pareto_k, warning
from kstep.npz import read_npz, write_npz
from kstep.result import Result
from kstep.runs.counters import Tally
from kstep.runs.loop import macro_steps
from kstep.runs.network_dynamics import Carrier
from kstep.schemas import PER_FRAME, join_trajectories, load_trajectory
from kstep.schemes import Nested
from kstep.schemes.hybrid_config import HybridConfig
from kstep.schemes.judge import Judge, decide, weighs_better
from kstep.schemes.network_ladder import NetworkLadder
from kstep.units import kT
from test_impulse_checked import water_spec  # noqa: F401 (a fixture)
from test_sampler import K_BOND, MASSES, R_BOND, SpringNetwork, double_well, pairs, populations, spring

KT = kT(300.0)
RNG = np.random.default_rng


def bond(u, du, masses=MASSES):
    return BondPotential(masses, [(0, 1)], u, du)


def soft_spring():
    """A network of `spring` that is wrong: 0.7 times as stiff and 2 % too long."""
    return bond(lambda r: 0.35 * K_BOND * (r - 1.02 * R_BOND) ** 2, lambda r: 0.7 * K_BOND * (r - 1.02 * R_BOND))


def nested(network, judge, rungs_K=(300.0,), moves=3, move_steps=6, masses=MASSES):
    carried = SpringNetwork(network)
    ladder = NetworkLadder(carried, Carrier(carried), masses, 1e-3, rungs_K, n_moves=moves, move_steps=move_steps)
    return Nested(ladder, moves * move_steps, judge=judge)


def sample(scheme, pool, x, n_steps, burn_in=40, seed=0):
    """Lengths, weights, acceptance (T,R) after burn-in, half-way through which the judge is frozen; and the tally."""
    rng, tally, gaps, kept = RNG(seed), Tally(scheme), [], []
    steps = macro_steps(scheme, pool, start_state(pool, x), rng, burn_in + n_steps, n_parts=2,
                        pause=lambda n: n == burn_in // 2)
    for n, (state, info) in enumerate(steps, start=1):
        if n <= burn_in // 2:
            gaps.append(info.gap)
        if n == burn_in // 2:
            scheme.freeze(np.concatenate(gaps))
        if n > burn_in:
            tally.add(state, info)
            kept.append((np.linalg.norm(state.positions[:, 1] - state.positions[:, 0], axis=-1), info.weight,
                         info.accepted))
    return *map(np.array, zip(*kept)), tally


def columns(values):
    """(T,R) as replica series (T,1)."""
    return [column[:, None] for column in np.asarray(values, dtype=float).T]


def estimate(values, weights=None):
    found = estimate_means(columns(values), 1.0, None if weights is None else list(weights.T))
    return found.mean[0], found.standard_error[0]


def radial_mean(u, low=0.05, high=0.4):
    r = np.linspace(low, high, 20001)
    density = r**2 * np.exp(-(u(r) - u(r).min()) / KT)
    return (r * density).sum() / density.sum()


# where weights come from


def test_weighted_frames_average_as_the_truth_and_the_bare_ones_as_the_network():
    truth, wrong = spring(), soft_spring()
    lengths, weights, accepted, tally = sample(nested(wrong, "weights"), BatchPool(truth), pairs(100, RNG(1)), 300)
    assert accepted.all()  # it never goes back
    mean, error = estimate(lengths, weights)
    bare, bare_error = estimate(lengths)
    assert abs(mean - radial_mean(truth.u)) < 4 * error < 1e-3
    assert abs(bare - radial_mean(wrong.u)) < 4 * bare_error
    assert abs(bare - radial_mean(truth.u)) > 10 * bare_error
    gap = truth.u(lengths) - wrong.u(lengths)
    assert np.ptp(np.log(weights) + gap / KT) < 1e-9  # the constant is one for the whole run
    found = tally.summary()
    assert "mean_exp_minus_beta_dH" not in found and found["acceptance"] == 1.0
    assert "k-hat" in tally.scheme.last_words(found) and "exp(-beta" not in tally.scheme.last_words(found)


def test_weights_give_more_samples_than_the_chain_of_the_same_proposals():
    truth, wrong = spring(), soft_spring()
    errors = {}
    for judge in ("chain", "weights"):
        lengths, weights, _, tally = sample(nested(wrong, judge, moves=6), BatchPool(truth), pairs(100, RNG(2)), 200)
        mean, errors[judge] = estimate(lengths, weights)
        assert abs(mean - radial_mean(truth.u)) < 4 * errors[judge]
        assert ("mean_exp_minus_beta_dH" in tally.summary()) == (judge == "chain")
    assert errors["weights"] < 0.9 * errors["chain"]
    *_, tally = sample(nested(wrong, "auto", moves=6), BatchPool(truth), pairs(100, RNG(2)), 4)
    assert tally.scheme.frozen["judge"] == "weights" and tally.scheme.frozen["pairs"] > 1000


def test_two_wells_that_the_network_has_at_other_depths_get_their_populations():
    truth, tilt = double_well(), 3.0 / 0.1  # kJ/mol/nm: 1.2 kT from one well to the other
    wrong = bond(lambda r: truth.u(r) + tilt * (r - 0.19), lambda r: truth.du(r) + tilt, truth.masses)
    x = np.zeros((64, 2, 3))
    x[:, 1, 0] = np.where(np.arange(64) % 2, 0.14, 0.24)
    scheme = nested(wrong, "weights", (300.0, 520.0, 900.0, 1600.0), moves=4, move_steps=30, masses=truth.masses)
    lengths, weights, _, _ = sample(scheme, BatchPool(truth), x, 400)
    far = lengths > 0.19
    mean, error = estimate(far, weights)
    assert abs(mean - populations(300.0)) < 4 * error < 0.06
    bare, bare_error = estimate(far)
    assert abs(bare - populations(300.0)) > 5 * bare_error


def test_a_hole_of_the_network_does_not_swallow_the_calls():
    """A true energy of 20 kT that the network has at -1 kT: on its own it would be there most of the time."""
    truth = spring()
    wrong = bond(lambda r: truth.u(r) - 52.0 * np.exp(-(((r - 0.22) / 0.012) ** 2)),
                 lambda r: truth.du(r) + 104.0 * (r - 0.22) / 0.012**2 * np.exp(-(((r - 0.22) / 0.012) ** 2)))
    scheme = nested(wrong, "weights", (300.0, 900.0, 2700.0), moves=4)
    lengths, weights, accepted, _ = sample(scheme, BatchPool(truth), pairs(100, RNG(3)), 200)
    assert accepted.mean() < 0.6 and (np.abs(lengths - 0.22) < 0.02).mean() < 0.01
    assert weights.min() >= np.exp(-10.0) - 1e-9
    mean, error = estimate(lengths, weights)
    assert abs(mean - radial_mean(truth.u)) < 4 * error < 1e-3


class Failing(BatchPool):
    """No true energy above a length of 0.156 nm."""

    def evaluate(self, positions, rows=None):
        truth = super().evaluate(positions, rows)
        failed = np.linalg.norm(positions[:, 1] - positions[:, 0], axis=-1) > 0.156
        return replace(truth, energy=np.where(failed, np.nan, truth.energy), failed=failed)

    submit = evaluate


def test_a_failed_call_counts_the_frame_before_it_once_more():
    truth, wrong = spring(), soft_spring()
    scheme = nested(wrong, "weights", moves=1)
    lengths, weights, accepted, tally = sample(scheme, Failing(truth), pairs(200, RNG(4)), 300)
    assert 0.2 < accepted.mean() < 0.9 and tally.counts["failed_true_calls"] == (~accepted).sum()
    exact = radial_mean(truth.u, high=0.156)
    mean, error = estimate(lengths, weights)
    assert abs(mean - exact) < 4 * error
    mean, error = estimate(lengths, weights * accepted)  # what a weight of 0 would make of it
    assert abs(mean - exact) > 5 * error


def autoregressive_gaps(spread_kT, memory, n, rng, chain=False):
    """Pairs of d in kJ/mol: along the network's own chain, or of the proposals of a Metropolis chain."""
    d, out = spread_kT * rng.standard_normal(400), []
    for _ in range(n):
        end = memory * d + np.sqrt(1.0 - memory**2) * spread_kT * rng.standard_normal(400)
        out.append(np.stack([d, end], axis=1))
        taken = (rng.random(400) < np.exp(-np.maximum(end - d, 0))) if chain else np.ones(400, dtype=bool)
        d = np.where(taken, end, d)
    return 40.0 + KT * np.concatenate(out)


@pytest.mark.parametrize("chain", [False, True])
def test_the_spread_and_memory_of_d_are_those_of_the_networks_chain_whichever_chain_was_run(chain):
    for spread, memory, judge in ((0.8, 0.1, "weights"), (1.2, 0.7, "chain"), (2.0, 0.0, "chain")):
        gaps = autoregressive_gaps(spread, memory, 40, RNG(5), chain)
        gaps[::50, 1] += 100.0 * KT  # holes are no part of the spread
        gaps[1::50, 1], gaps[2::50, 0] = np.inf, np.nan
        found = decide("auto", gaps, KT)
        assert found["spread_kT"] == pytest.approx(spread, rel=0.05)
        assert found["memory"] == pytest.approx(memory, abs=0.05)
        assert found["judge"] == judge and (found["middle"] is None) == (judge == "chain")


def test_what_was_asked_for_is_done_and_too_few_proposals_decide_for_the_chain():
    gaps = autoregressive_gaps(0.3, 0.0, 1, RNG(6))
    assert decide("weights", gaps[:5], KT)["middle"] == pytest.approx(np.median(gaps[:5, 0]))
    assert decide("auto", gaps[:5], KT)["judge"] == "chain" == decide("chain", gaps, KT)["judge"]
    assert decide("auto", np.zeros((0, 2)), KT)["judge"] == "chain"
    assert weighs_better(1.5, 0.0) and not weighs_better(1.5, 0.8) and not weighs_better(0.2, 0.0)
    with pytest.raises(UserError, match="burn_in_steps of 2"):
        Nested.settle_defaults(HybridConfig(scheme="nested", judge="weights", burn_in_steps=1), None, None)


def test_a_judge_is_exact_by_its_parts():
    """exp(-excess/kT) of the test times the weight is exp(-d/kT) up to a constant, in and beyond the limits."""
    d = np.linspace(-30.0, 30.0, 13) * KT + 7.0
    for judge in (Judge(), Judge(7.0)):
        whole = judge.excess(d, KT) / KT - np.log(judge.weight(d, KT)) - d / KT
        assert np.ptp(whole) < 1e-9
    assert Judge(7.0).excess(np.array([np.inf]), KT) == np.inf
    near = np.abs(d - 7.0) <= 10.0 * KT
    assert (Judge(7.0).excess(d, KT)[near] == Judge(7.0).excess(np.array([7.0]), KT)).all()


# what they are worth


@pytest.mark.parametrize("k", [0.2, 0.5, 0.9])
def test_k_hat_is_the_shape_of_a_pareto_tail(k):
    found = [pareto_k(1.0 + genpareto(k).rvs(4000, random_state=seed)) for seed in range(30)]
    assert np.mean(found) == pytest.approx(k, abs=0.08)


def test_the_sums_of_a_run_know_what_its_weights_are_worth():
    scheme, weights = nested(soft_spring(), "weights"), np.exp(0.9 * RNG(14).standard_normal((40, 100)))
    scheme.frozen = {"middle": 0.0}
    state = start_state(BatchPool(spring()), pairs(100, RNG(0)))
    info = next(macro_steps(scheme, BatchPool(spring()), state, RNG(0), 1))[1]
    tally = Tally(scheme)
    for row in weights:
        tally.add(state, replace(info, weight=row))
    exact, found = diagnose(weights.ravel()), tally.summary()["figures"]["weights"]
    assert found["frames"] == 4000 and tally.summary()["figures"]["longest_stay"] == 0
    for key in ("effective_share", "largest_share"):
        assert found[key] == pytest.approx(exact[key], rel=0.01)
    assert found["pareto_k_hat"] == pytest.approx(exact["pareto_k_hat"], abs=0.03)


def test_k_hat_warns_of_wide_weights_and_not_of_narrow_ones():
    narrow, wide = (diagnose(np.exp(-spread * RNG(7).standard_normal(2000))) for spread in (0.7, 3.0))
    assert narrow["pareto_k_hat"] < 0.5 and warning(narrow) is None
    assert narrow["effective_share"] == pytest.approx(np.exp(-0.49), rel=0.1)
    assert wide["pareto_k_hat"] > 0.7 and "the weights say" in warning(wide)
    alone = diagnose(np.r_[np.ones(50), 200.0])
    assert "one frame holds 80%" in warning(alone) and "one frame holds 80%" in in_words(alone)
    assert pareto_k(np.ones(1000)) is None and warning(diagnose(np.ones(1000))) is None
    assert "every frame weighs 0" in warning(diagnose(np.zeros(9)))
    assert effective_share(np.array([1.0, 1.0, 0.0, 0.0])) == 0.5


# averages under them


def test_the_error_of_a_weighted_average_is_what_averages_scatter_by():
    rng, predicted, found, n_eff = RNG(8), [], [], []
    for _ in range(300):
        d = synthetic.autoregressive(rng, 1200, 1, 0.6)
        own = synthetic.autoregressive(rng, 1200, 1, 0.8)
        weights, values = np.exp(-0.8 * d[:, 0]), 0.5 * d + own
        one = estimate_means(list(values.reshape(3, 400, 1)), 1.0, list(weights.reshape(3, 400)))
        predicted.append(one.mean_variance[0])
        found.append(one.mean[0])
        n_eff.append(one.n_eff[0])
    assert np.mean(found) == pytest.approx(-0.5 * 0.8, abs=0.03)
    assert np.mean(predicted) == pytest.approx(np.var(found), rel=0.25)
    assert np.mean(n_eff) == pytest.approx(1.25 / np.var(found), rel=0.25)


def test_independent_weights_are_worth_kishs_share():
    rng = RNG(9)
    values, weights = rng.standard_normal((4, 5000, 1)), np.exp(rng.standard_normal((4, 5000)))
    one = estimate_means(list(values), 1.0, list(weights))
    assert one.n_eff[0] == pytest.approx(20000 * effective_share(weights.ravel()), rel=0.15)
    series = Series(list(values[..., 0]), list(90.0 * values), ["a"], 1.0, list(weights))
    for samples in (by_errors(series, [0]), FittedTail(False)(series, [0])):
        assert samples == pytest.approx(20000 * effective_share(weights.ravel()), rel=0.25)
    halved = series.every(2.0).subset([0, 1])
    assert [len(w) for w in halved.weights] == [2500, 2500] and halved.n_frames == 5000


def test_r_hat_sees_replicas_apart_whose_bare_frames_agree():
    x = RNG(10).standard_normal((4, 2000, 1))
    same = [np.exp(0.1 * RNG(11).standard_normal(2000)) for _ in range(4)]
    apart = [np.exp(s * v[:, 0]) for s, v in zip((1, 1, -1, -1), x)]
    assert split_r_hat(list(x), same)[0] < 1.01 < 1.3 < split_r_hat(list(x), apart)[0]
    assert split_r_hat(list(x), [np.ones(2000)] * 4) == pytest.approx(split_r_hat(list(x)), rel=1e-12)
    assert split_r_hat(list(x), [*same[:3], np.zeros(2000)])[0] == np.inf


# every reader


def weighted(whole=True, seed=0, **more):
    """The synthetic ethanol with weights: integers, or exp of what its bonds are stretched by."""
    run = synthetic.ethanol(seed, replicas=4, frames=400, **more)
    stretch = np.linalg.norm(run.pos[:, 1] - run.pos[:, 0], axis=1) / 0.003
    weights = RNG(seed).integers(0, 4, len(run.pos)).astype(float) if whole else np.exp(
        0.8 * (stretch - stretch.mean()))
    return replace(run, weight=weights)


def repeated(run):
    """The same with every frame as often as it weighs, and no weights."""
    rows = np.repeat(np.arange(len(run.pos)), run.weight.astype(int))
    arrays = {key: getattr(run, key) for key in PER_FRAME}
    return replace(run, **{**{key: a[rows] for key, a in arrays.items() if len(a)}, "weight": np.zeros(0)})


def test_a_weight_counts_a_frame_so_often():
    run = weighted()
    one, many = characterise(run), characterise(repeated(run))
    for kind in ("bonds", "angles"):
        assert one.means[kind].mean == pytest.approx(many.means[kind].mean, rel=1e-12)
        assert one.means[kind].variance == pytest.approx(many.means[kind].variance, rel=2e-3)
    for kind, counts in one.histograms.items():
        summed, other = counts.sum(axis=0), many.histograms[kind].sum(axis=0)
        assert summed / summed.sum() == pytest.approx(other / other.sum(), abs=1e-12), kind
    assert one.potential.mean == pytest.approx(many.potential.mean, rel=1e-12)
    assert one.rdf.mean == pytest.approx(many.rdf.mean, rel=1e-9, abs=1e-12)
    mine, theirs = (common_rotamers([series_of(p)], [])[0] for p in (one, many))
    assert np.array_equal(mine.centres_deg, theirs.centres_deg)
    assert mine.per_chance == pytest.approx(theirs.per_chance, rel=1e-12)
    assert characterise(replace(run, weight=np.full(len(run.pos), 3.0))).weights is None


def test_frames_in_blocks_are_weighed_too():
    """Spacing of 10 fs: blocks of five frames in the pair distances and the bins."""
    run = weighted(spacing_ps=0.01)
    profile, bare = characterise(run), characterise(replace(run, weight=np.zeros(0)))
    chosen = np.concatenate(profile.replicas)
    weights = run.weight[chosen]
    first = np.linalg.norm(run.pos[chosen, 1] - run.pos[chosen, 0], axis=1)
    assert 0.1 * profile.means["bonds"].mean[0] == pytest.approx(np.average(first, weights=weights), rel=1e-12)
    distances = np.linalg.norm(run.pos[chosen][:, :, None] - run.pos[chosen][:, None], axis=-1)
    i, j = np.triu_indices(9, 1)
    counts, _ = np.histogram(distances[:, i, j], 200, (0, 1.0), weights=np.repeat(weights[:, None], len(i), axis=1))
    assert profile.rdf.mean == pytest.approx(counts / counts.sum(), abs=1e-5)
    assert np.abs(bare.rdf.mean - counts / counts.sum()).max() > 1e-4
    for sizes in (profile.bin_n_eff, profile.shape_n_eff):
        for n in sizes.values():
            assert (0 < n).all() and (n <= profile.n_frames).all()


def test_a_comparison_heeds_them_and_says_what_they_are_worth():
    reference, shifted = synthetic.ethanol(1, frames=400), weighted(whole=False)
    found = compare(reference, shifted)
    bare = compare(reference, replace(shifted, weight=np.zeros(0)))
    expected = 10.0 * 0.003 * 0.8  # a Gaussian of 0.003 nm, tilted by 0.8 of its widths
    mean = characterise(shifted).means["bonds"].mean[0] - characterise(reference).means["bonds"].mean[0]
    assert mean == pytest.approx(expected, rel=0.25)
    assert found["structure"]["bond_rmse_A"]["verdict"] == Verdict.ABOVE_FLOOR
    assert bare["structure"]["bond_rmse_A"]["verdict"] == Verdict.WITHIN_FLOOR and bare["weights"] is None
    assert found["sampling"]["energy"] < 0.8 * bare["sampling"]["energy"]
    assert found["weights"]["effective_share"] == pytest.approx(np.exp(-0.64), rel=0.15)
    assert found["weights"]["verdict"] == Verdict.CONVERGED
    rows = {row[0]: row[1:] for row in table(found, {})[1]}
    assert rows["Pareto k-hat of the weights"][2] == "converged" and "Pareto k-hat of the weights" not in {
        row[0] for row in table(bare, {})[1]}


def test_weights_of_no_use_are_called_not_converged():
    run = weighted()
    run.weight = np.exp(4.0 * RNG(12).standard_normal(len(run.pos)))
    found = compare(synthetic.ethanol(1, frames=400), run)
    assert found["weights"]["verdict"] == Verdict.NOT_CONVERGED == found["sampling"]["convergence"]
    assert {t["convergence"] for t in found["torsions"]} == {Verdict.NOT_CONVERGED}
    assert any("the weights say" in warning for warning in found["warnings"])


def test_the_identity_of_a_chain_is_not_asked_of_weighted_frames():
    run = synthetic.ethanol(0, frames=400, scheme="metropolis")
    reference = synthetic.ethanol(1, frames=400)
    assert "exp_minus_beta_dH" in compare(reference, run)["proposals"]
    found = compare(reference, replace(run, weight=np.exp(RNG(13).standard_normal(len(run.pos)))))
    assert "exp_minus_beta_dH" not in found["proposals"] and found["proposals"]["acceptance"] > 0


def test_the_picture_of_the_energy_is_weighted():
    run = weighted()
    heights = []
    for one in (run, repeated(run)):
        axis = draw_energy(characterise(run), characterise(one)).axes[1]
        heights.append(axis.patches[-1].get_xy()[:, 0])
    assert heights[0] == pytest.approx(heights[1], rel=1e-9)


# files


def test_files_hold_weights_and_older_ones_need_none(tmp_path):
    run, path = weighted(), tmp_path / "run.npz"
    synthetic.save(path, run)
    assert np.array_equal(load_trajectory(path).weight, run.weight) and load_trajectory(path).is_weighted
    arrays = read_npz(path)
    del arrays["weight"]
    write_npz(path, arrays)
    assert len(load_trajectory(path).weight) == 0 and not load_trajectory(path).is_weighted
    for bad, words in ((-1.0, "below 0 in frame 3"), (np.nan, "NaN or infinity"), (np.inf, "NaN or infinity")):
        run.weight[3] = bad
        with pytest.raises(UserError, match=words):
            synthetic.save(path, run)
    with pytest.raises(UserError, match="all weigh 0"):
        characterise(replace(run, weight=np.r_[1.0, np.zeros(len(run.pos) - 1)]))


def test_joined_files_have_one_measure():
    """A weight is known up to a factor of its file; a file without weights counts each frame once."""
    one, other = weighted(whole=False), synthetic.ethanol(1, frames=400)
    joined = join_trajectories([replace(one, weight=1e3 * one.weight), other])
    mean = characterise(joined).means["bonds"].mean
    both = [characterise(t).means["bonds"].mean for t in (one, other)]
    assert mean == pytest.approx(np.mean(both, axis=0), rel=1e-9)
    assert len(join_trajectories([other, other]).weight) == 0


def test_formats_hold_weights_or_refuse(tmp_path):
    from ase.io import read

    run, path = weighted(), tmp_path / "run.npz"
    order = np.lexsort((run.step, run.replica))
    for ending in ("extxyz", "traj"):
        frames = read(export(run, tmp_path / f"run.{ending}"), index=":")
        assert [a.info["weight"] for a in frames] == list(run.weight[order])
    for ending in ("xyz", "pdb", "dcd", "xtc"):
        with pytest.raises(UserError, match=f"{ending} has no place for the weights"):
            export(run, tmp_path / f"run.{ending}")
    with pytest.raises(UserError, match="mdtraj has no place"):
        to_mdtraj(run)
    assert "weight" not in to_atoms(synthetic.ethanol(frames=5))[0].info
    synthetic.save(path, run)
    result = Result(path)
    assert result.weights.mean() == pytest.approx(1.0) and len(result.weights) == len(result)
    assert np.average(result.energies, weights=result.weights) == pytest.approx(characterise(run).potential.mean[0])
    alike = result.alike()
    export(alike.chosen, tmp_path / "run.dcd")
    assert len(alike) == len(result) and (alike.weights == 1).all() and not alike.chosen.is_weighted
    times = np.array([np.count_nonzero(alike.frames == row) for row in result.frames])
    assert np.abs(times - result.weights).max() < 1.0  # as often as it weighs, to one
    assert alike.energies.mean() == pytest.approx((result.energies * result.weights).mean(), abs=0.5)


def test_a_run_with_an_aim_heeds_weights():
    from kstep.runs.aim import Aim, series_of_run

    settings = HybridConfig(scheme="nested", effective_samples=1, temperature_K=300.0)
    run, profile = weighted(whole=False), characterise(weighted(whole=False))
    useless = np.exp(6.0 * RNG(15).standard_normal(len(run.pos)))
    aims, runs = {}, {"bare": replace(run, weight=run.weight[:0]), "weighted": run,
                      "useless": replace(run, weight=useless)}
    for kind, frames in runs.items():
        aims[kind] = Aim(settings)
        aims[kind].judge(frames)
    bare, with_weights = (series_of_run(runs[kind]) for kind in ("bare", "weighted"))
    assert bare.weights is None and with_weights.weights[0] == pytest.approx(profile.weights[0])
    assert aims["weighted"].known.samples["energy"] < 0.8 * aims["bare"].known.samples["energy"]
    for aim in aims.values():
        aim.known = replace(aim.known, r_hat=dict.fromkeys(aim.known.r_hat, 1.0))
    assert aims["bare"].shortfall() is None and "the weights say" in aims["useless"].shortfall()
    none = Aim(settings)
    none.judge(replace(run, weight=0.0 * run.weight + (np.arange(len(run.pos)) == 0)))
    assert none.known is None and "weigh 0" in none.shortfall()


def run_of_water(water, spec, folder, name, *, judge, resume=False, cut_at=None):
    """Eight macro-steps of water with a network that has seen little of it; cut after a macro-step."""
    from kstep.models import checkpoint as checkpoints
    from kstep.models.model_config import ModelConfig
    from kstep.runs import production
    from kstep.runs.run_hybrid import run_hybrid
    from kstep.runs.settings import HybridRun
    from kstep.training.label_fit import fit
    from kstep.training.labels import Labels
    from kstep.training.train_config import FitConfig

    if not (folder / "best.pt").is_file():
        true = spec.build()
        x = water.conformers[0] + 0.004 * RNG(7).standard_normal((60, 3, 3))
        energy, forces = zip(*map(true.energy_and_forces, x))
        model = ModelConfig(arch="pair_mlp", pair_hidden=[16], heads={"energy": True, "jump": False})
        fitted = fit(model, water, Labels(x, np.array(energy), np.array(forces), 300.0), FitConfig(fit_passes=60),
                     true_calls=60, method="mmff94", dt_fs=0.5, temperature_K=300.0, seed=0)
        checkpoints.save(folder / "best.pt", fitted.checkpoint)
    hybrid = HybridConfig(scheme="nested", tune=False, moves=2, k_steps=20, dt_fs=0.5, network_ladder_K=[300.0],
                          steps=12, burn_in_steps=8, replicas=20, temperature_K=300.0, checkpoint_interval=3,
                          inner="numpy", judge=judge)
    steps = production.macro_steps

    def cut(*arguments, **more):
        for n, state in enumerate(steps(*arguments, **more)):
            if n == cut_at:
                raise KeyboardInterrupt
            yield state

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(production, "macro_steps", cut)
        return run_hybrid(HybridRun(water, spec, "mmff94", hybrid, folder / "best.pt", folder / f"{name}.npz", seed=3,
                                    resume=resume), {}, {})


@pytest.mark.parametrize("cut_at", [3, 10])
def test_a_resumed_run_weighs_as_one_that_was_not_cut(water, water_spec, tmp_path, cut_at):  # noqa: F811
    """Cut before the judge is frozen (macro-step 4), and after."""
    whole = run_of_water(water, water_spec, tmp_path, "whole", judge="weights")
    with pytest.raises(KeyboardInterrupt):
        run_of_water(water, water_spec, tmp_path, "cut", judge="weights", cut_at=cut_at)
    resumed = run_of_water(water, water_spec, tmp_path, "cut", judge="weights", resume=True)
    a, b = (load_trajectory(tmp_path / f"{name}.npz") for name in ("whole", "cut"))
    for key in ("pos", "weight", "Epot", "delta_H"):
        assert np.array_equal(getattr(a, key), getattr(b, key), equal_nan=key == "delta_H"), key
    assert whole["judge"] == resumed["judge"] and whole["judge"]["judge"] == "weights"
    assert whole["tally"] == resumed["tally"] and whole["figures"]["weights"]["frames"] == 240
    assert (a.weight[a.step <= 4 * 20] == 1.0).all() and a.is_weighted
    made = a.weight[a.frames_of("train")]
    assert whole["figures"]["weights"]["effective_share"] == pytest.approx(effective_share(made), rel=0.02)
    assert "k-hat" in str(Result(tmp_path / "whole.npz"))


def test_a_run_that_settles_for_the_chain_has_no_weights(water, water_spec, tmp_path):  # noqa: F811
    metadata = run_of_water(water, water_spec, tmp_path, "chain", judge="chain")
    run = load_trajectory(tmp_path / "chain.npz")
    assert not run.is_weighted and metadata["judge"]["middle"] is None
    assert metadata["judge"]["spread_kT"] > 0 and "weights" not in metadata["figures"]
    assert "mean_exp_minus_beta_dH" in metadata
