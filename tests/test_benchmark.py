"""The benchmark: rates with errors, speed-ups, bars, and 07_benchmark.py as a user runs it."""

import importlib.util
import json
import math
import shlex
from dataclasses import replace

import numpy as np
import pytest

import synthetic
from conftest import ROOT, molecule_from_smiles, run_program, run_python
from kstep.analysis.measure import samples as rates
from kstep.analysis.measure.profile import characterise
from kstep.cli import baseline, sample
from kstep.cli.flags import make_parser
from kstep.dihedrals import dihedrals_deg, wrap_deg
from kstep.errors import UserError
from kstep.schemes import SCHEMES
from kstep.stages.physics import load_physics, prepared_physics
from kstep.study.benchmark import agreement, bars, network_reference, runner, samplers, sections, speedup
from kstep.study.benchmark.plan import EXACT, FAST, RIVAL, Lengths, Plan, Variant
from kstep.units import kT

TARGETS = ROOT / "benchmarks/targets.yaml"
HOP = 0.05  # per frame: the torsion forgets with (1 - HOP)^t, so g = (2 - HOP) / HOP


def series(seed, frames, hop=HOP, replicas=8, wells=None):
    """What `rates.series_of` gives for the synthetic ethanol, without its positions."""
    rng = np.random.default_rng(seed)
    energies, torsions = [], []
    for r in range(replicas):
        noise = synthetic.autoregressive(rng, frames, 16, 0.8)
        hops = np.where(rng.random(frames) < hop, rng.integers(0, 3, frames), -1)
        hops[0] = rng.integers(0, 3)
        state = hops[np.maximum.accumulate(np.where(hops >= 0, np.arange(frames), 0))]
        state = state if wells is None else np.full(frames, wells[r])
        energies.append((noise**2).sum(axis=1))
        torsions.append(wrap_deg(synthetic.WELLS[state] + 12.0 * noise[:, 15])[:, None])
    return rates.Series(energies, torsions, ["C0-C1-O2-H8"], 0.1)


def found(s, rotamers=None):
    return rates.effective_samples(s, rotamers or rates.common_rotamers([s], []))


def test_effective_samples_are_those_of_known_processes():
    s = series(1, 4000)
    result = found(s)
    label, torsion = rates.slowest(result["torsions"])
    assert label == "C0-C1-O2-H8"
    assert torsion["samples"] == pytest.approx(s.n_frames * HOP / (2 - HOP), rel=0.2)
    # the energy is a sum of squares of AR(1) processes: its correlation is c^2
    assert result["energy"]["samples"] == pytest.approx(s.n_frames * (1 - 0.64) / (1 + 0.64), rel=0.1)
    assert 0.02 < torsion["standard_error"] / torsion["samples"] < 0.3


def test_a_jackknife_error_covers_the_spread_of_repeated_runs():
    wells = [rates.Rotamers("C0-C1-O2-H8", np.array([-60.0, 60.0, 180.0]), 2 / 3)]
    runs = [found(series(seed, 1500), wells)["torsions"]["C0-C1-O2-H8"] for seed in range(12)]
    spread = np.std([r["samples"] for r in runs], ddof=1)
    assert 0.5 < np.mean([r["standard_error"] for r in runs]) / spread < 2.5


def test_replicas_that_disagree_widen_the_error():
    wells = [rates.Rotamers("C0-C1-O2-H8", np.array([-60.0, 60.0, 180.0]), 2 / 3)]
    calm, busy = series(1, 3000, hop=0.02, replicas=4), series(2, 3000, hop=0.3, replicas=4)
    mixed = rates.Series(calm.energy + busy.energy, calm.torsions + busy.torsions, calm.labels, 0.1)
    entry = found(mixed, wells)["torsions"]["C0-C1-O2-H8"]
    assert entry["standard_error"] > 1.5 * entry["samples"] * np.sqrt(2 / entry["samples"])


def test_the_ratio_of_two_rates_is_recovered_within_its_error():
    slow, fast = series(2, 4000, hop=0.02), series(3, 4000, hop=0.2)
    wells = rates.common_rotamers([slow], [fast])
    a, b = (rates.per(rates.slowest(found(s, wells)["torsions"])[1], s.n_frames) for s in (fast, slow))
    quotient = rates.ratio(a, b)
    assert abs(quotient["value"] - (0.2 / 1.8) / (0.02 / 1.98)) < 3 * quotient["error"]
    assert quotient["error"] < 0.5 * quotient["value"]


def test_no_rate_from_fewer_than_fifty_samples():
    assert rates.per({"samples": 49.0, "standard_error": 1.0}, 10.0) is None
    assert rates.per({"samples": 50.0, "standard_error": 5.0}, 10.0) == {"value": 5.0, "error": 0.5, "samples": 50.0}


def test_crossings_bound_the_rate_of_a_run_that_hardly_crosses():
    none = {"crossings": 0, "crossings_per_sample": 0.5}
    assert rates.most_samples_by_poisson(none) == pytest.approx(-math.log(0.05) / 0.5)
    short = [found(series(seed, 400, hop=0.002, replicas=2), [rates.Rotamers(
        "C0-C1-O2-H8", np.array([-60.0, 60.0, 180.0]), 2 / 3)])["torsions"]["C0-C1-O2-H8"]
        for seed in range(40)]
    truth = 800 * 0.002 / (2 - 0.002)
    bounds = [rates.most_samples_by_poisson(s) for s in short]
    assert np.mean([b >= truth for b in bounds]) >= 0.9


def broad_chains(n, length, p, *, keep=0.0, seed=1):
    """Chains of draws from wells at 0 and 150 degrees, 30 wide, the first of share p; a frame is kept with `keep`."""
    rng = np.random.default_rng(seed)
    angles = wrap_deg(np.where(rng.random((n, length)) < p, 0.0, 150.0) + 30.0 * rng.standard_normal((n, length)))
    for k in range(1, length):
        stays = rng.random(n) < keep
        angles[stays, k] = angles[stays, k - 1]
    return rates.Series(list(np.zeros((n, length))), list(angles[..., None]), ["t"], 0.1)


@pytest.mark.parametrize("n, length, p, keep", [
    (4000, 4, 0.5, 0.0), (1000, 16, 0.2, 0.0), (8, 4000, 0.1, 0.0), (4000, 4, 0.2, 0.5)])
def test_independent_draws_cross_as_often_as_they_are_many(n, length, p, keep):
    """Neither short chains nor frames between the cores, which cannot cross, count as memory; a kept frame does."""
    drawn = broad_chains(n, length, p, keep=keep)
    unbounded = rates.effective_samples(drawn, rates.common_rotamers([drawn], []), jackknife=False,
                                        correlation=lambda part, columns: np.full(1 + len(columns), 1e9))
    assert unbounded["torsions"]["t"]["samples"] == pytest.approx((1 - keep) * n * length, rel=0.15 if keep else 0.04)


def test_one_frame_a_chain_crosses_nothing():
    drawn = broad_chains(100, 1, 0.5)
    entry = rates.effective_samples(drawn, rates.common_rotamers([drawn], []), jackknife=False)["torsions"]["t"]
    assert entry["samples"] == 0 and entry["crossings"] == 0 and rates.most_samples_by_poisson(entry) > 100


def test_a_torsion_with_one_well_in_the_reference_is_named_not_counted():
    stuck, free = series(4, 300, replicas=2, wells=[0, 0]), series(5, 2000)
    wells, notes = rates.counted(rates.common_rotamers([stuck], [free]))
    assert wells == [None] and "C0-C1-O2-H8" in notes[0]
    assert rates.slowest(found(free, wells)["torsions"]) is None


def test_a_side_says_as_much_of_populations_as_it_crosses():
    free = series(5, 3000, hop=1.0)
    stuck = series(4, 3000, replicas=4, wells=[0, 0, 0, 1])  # as chains start, and stay
    slow = rates.Series(stuck.energy + free.energy[:1], stuck.torsions + [t[:30] for t in free.torsions[:1]],
                        stuck.labels, stuck.spacing_ps)
    for references, runs in (([stuck], [free]), ([free], [stuck]), ([slow], [free])):
        found = rates.common_rotamers(references, runs)[0]
        assert found.per_chance == pytest.approx(2 / 3, abs=0.01)
    neither = rates.common_rotamers([stuck], [series(6, 3000, replicas=2, wells=[1, 1])])[0]
    assert neither.per_chance == pytest.approx(2 * 0.375 * 0.625, abs=0.01)  # nobody knows better


def test_a_torsion_that_nobody_crosses_is_named_not_counted():
    stuck = series(4, 300, replicas=4, wells=[0, 0, 0, 1])
    wells, notes = rates.comparable(rates.common_rotamers([stuck], [series(6, 300, replicas=2, wells=[0, 0])]))
    assert wells == [None] and "C0-C1-O2-H8 has 2 wells, in each of which something began, and none" in notes[0]
    for references, runs in (([stuck], [series(5, 300)]), ([series(5, 300)], [stuck])):
        wells, notes = rates.comparable(rates.common_rotamers(references, runs))
        assert wells[0] is not None and not notes


def plain_beside_network(plain_frames, network_frames):
    plain, network = series(6, plain_frames, hop=0.01, replicas=4), series(7, network_frames, hop=0.01)
    certificate = {"certificate": {"pairs": 10, "spread_kJ_per_mol": 0.1, "force_rmse_kJ_per_mol_A": 0.3},
                   "true_calls": 10, "us_per_replica_step": 5.0}
    wells = rates.common_rotamers([plain, network], [])
    return speedup.plain_rates(plain, 1000.0, wells, (network, certificate))


def test_a_plain_run_too_short_for_its_torsion_is_helped_by_the_networks_dynamics():
    result = plain_beside_network(400, 20_000)
    assert result["torsion_direct"]["per_call"] is None
    assert result["torsion"]["source"] == speedup.FROM_NETWORK
    truth = 0.01 / 1.99 / 100  # samples per call: 0.1 ps per frame, 1000 calls per ps
    assert result["torsion"]["value"] == pytest.approx(truth, rel=0.25)
    assert result["torsion_at_most"]["per_call"] > truth
    energy = next(a for a in result["network"]["agreement"] if a["observable"] == "energy")["plain_over_network"]
    assert abs(energy["value"] - 1) < 3.5 * energy["error"]
    assert result["energy"]["source"] == speedup.FROM_PLAIN


def test_a_plain_run_too_short_for_its_energy_is_helped_by_the_networks_dynamics():
    result = plain_beside_network(30, 20_000)
    assert result["energy_direct"]["samples"] < 50
    assert result["energy"]["source"] == speedup.FROM_NETWORK
    of_squares = (1 - 0.64) / (1 + 0.64) / 100  # of AR(1) series, per call
    assert result["energy"]["value"] == pytest.approx(of_squares, rel=0.1)


def test_a_long_plain_run_speaks_for_itself_and_agrees_with_the_network():
    result = plain_beside_network(10_000, 20_000)
    assert result["torsion"]["source"] == speedup.FROM_PLAIN
    torsion = next(a for a in result["network"]["agreement"] if a["observable"] != "energy")["plain_over_network"]
    assert abs(torsion["value"] - 1) < 3 * torsion["error"]


def test_the_total_from_a_cold_start_is_the_sum_of_its_parts():
    row = {"training": {"cpu_s": 100.0}, "cost": {"cpu_s_burn_in": 20.0}}
    total = speedup.total_cpu(row, {"value": 50.0, "error": 5.0}, {"value": 1.0, "error": 0.1})
    assert total["cpu_s"] == {"value": pytest.approx(320.0), "error": pytest.approx(20.0)}
    assert total["plain_cpu_s"]["value"] == pytest.approx(10_000.0)
    assert total["ratio"]["value"] == pytest.approx(31.25)
    assert total["ratio"]["error"] == pytest.approx(31.25 * math.hypot(0.1, 1 / 16))


def bars_of(molecule="ethanol", targets=None, **changes):
    ratio = {"value": 20.0, "error": 1.0}
    cold = [{"true_calls": calls, "acceptance": 0.9, "cpu_s": calls / 10, "decides": True} for calls in (400, 450, 900)]
    drift = {"drift_kJ_per_mol_ps": -0.01, "half_width_95": 0.015, "blown_up_segments": 0}
    result = {"rows": {"impulse": {"drift": drift}},
              "speed_up": [{"torsion_per_call": ratio, "energy_per_call": ratio, "torsion_per_cpu_s": ratio}],
              "plain_rates": {"torsion": {"source": speedup.FROM_PLAIN}, "energy": {"source": speedup.FROM_NETWORK}},
              "cold_start": cold, "from_cold_start": [], "samplers": [], "inner_step": None, **changes}
    targets = bars.load_targets(TARGETS, molecule) if targets is None else targets
    return {b["key"]: b for b in bars.bars(targets, result)}


def test_bars_are_met_missed_or_undecided():
    found = bars_of()
    assert found["cold_start"]["met"] is True and found["cold_start"]["value"] == 450
    assert found["torsion_per_call"]["met"] is True
    assert found["energy_per_call"]["met"] is False
    assert found["total"]["met"] is None  # nothing measured
    assert found["impulse_drift"]["met"] is True
    wide = {"impulse": {"drift": {"drift_kJ_per_mol_ps": -0.01, "half_width_95": 0.03, "blown_up_segments": 0}}}
    assert bars_of(rows=wide)["impulse_drift"]["met"] is None
    failed = [{"true_calls": 500, "acceptance": 0.9, "cpu_s": 9.0, "decides": True}] + [
        {"true_calls": 900, "acceptance": 0.1, "cpu_s": 9.0, "decides": False}] * 2
    assert bars_of(cold_start=failed)["cold_start"]["value"] is None
    assert all(b["target"] == "" and b["met"] is None for b in bars_of("water").values())


def test_a_seed_that_left_no_network_counts_as_one_that_was_not_enough():
    """Of three cold starts one that was good is no median."""
    good = {"true_calls": 400, "acceptance": 0.9, "cpu_s": 40.0, "decides": True}
    found = bars_of(cold_start=[good], seeds=[0, 1, 2])
    assert found["cold_start"]["value"] is None and not found["cold_start"]["met"]
    assert found["cold_start_cpu_s"]["value"] is None
    assert found["cold_start"]["measured"] == "400 (0.90); 2 more left no network"
    found = bars_of(cold_start=[good, {**good, "true_calls": 450}], seeds=[0, 1, 2])
    assert found["cold_start"]["value"] == 450 and found["cold_start"]["met"]


def test_targets_are_data_and_a_wrong_key_is_named(tmp_path):
    (tmp_path / "own.yaml").write_text("water:\n  energy_per_call: 3\n  impulse: {drift: 0.5}\n")
    found = bars_of("water", bars.load_targets(tmp_path / "own.yaml", "water"))
    assert found["energy_per_call"]["met"] is True and found["impulse_drift"]["target"] == "<= 0.5"
    for text, words in (("water: {enrgy_per_call: 3}", "did you mean 'energy_per_call'"),
                        ("water: {total: much}", "no target"),
                        ("water: {impulse: {total: 3}}", "'total' of water is no target")):
        (tmp_path / "own.yaml").write_text(text)
        with pytest.raises(UserError, match=words):
            bars.load_targets(tmp_path / "own.yaml", "water")


def test_published_tables_hold_the_bars_and_the_schemes(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks/tables.py")
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    monkeypatch.setattr(tables, "EXACT_AND_FAST", tmp_path / "published.json")
    entry = {"molecule": "ethanol", "method": "GFN2-xTB", "temperature_K": 300.0, "settings": {"num_workers": 2},
             "machine": {"cpu": "a CPU"}, "samplers": [], "table": [["", "plain 1 fs"], ["true calls per ps", "1000"]],
             "bars": list(bars_of().values()), "sentences": ["how it was made"]}
    (tmp_path / "benchmark.json").write_text(json.dumps(entry))
    tables.add(tmp_path / "benchmark.json")
    text = tables.exact_and_fast(json.loads((tmp_path / "published.json").read_text()))
    assert "| true calls per ps | 1000 |" in text and "| >= 12x | 20 +- 1x" in text and "**missed**" in text
    shown = text.split("### Exact and fast")[1].split("\n### ")[0].splitlines()
    widths = {line.count("|") for line in shown if line.startswith("|")}
    assert widths == {3, 4}  # no cell breaks its row
    with pytest.raises(SystemExit, match="is not a benchmark.json"):
        tables.add(ROOT / "README.md")
    monkeypatch.setattr(tables, "AGREEMENT", tmp_path / "agreement.json")
    with pytest.raises(SystemExit, match="run the sections nested and metropolis"):
        tables.add_agreement(tmp_path / "benchmark.json")
    tests = {kind: {"p": p} for kind, p in (("populations", 0.3), ("energy", 0.5), ("bonds", 0.6), ("angles", 0.7))}
    found = {"chains": [64, 64], "p": 0.4, "tests": tests, "largest": dict.fromkeys(tests, 0.004),
             "seen": dict.fromkeys(tests, 0.009)}
    pairs = [{"name": "nested", "rival": None, "agreement": None},
             {"name": "nested", "rival": RIVAL, "agreement": found}]
    (tmp_path / "long.json").write_text(json.dumps({**entry, "samplers": pairs, "commands": {}, "versions": {},
                                                    "git_commit": "x"}))
    tables.add_agreement(tmp_path / "long.json")
    text = tables.agreement(json.loads((tmp_path / "agreement.json").read_text()))
    assert "ethanol, GFN2-xTB: nested and metropolis agree with p = 0.4 (64 and 64 chains)" in text
    assert "apart by at most 0.004 where 0.009 would have been seen" in text


def test_effort_scales_what_sharpens_a_figure_and_leaves_what_a_bar_prescribes():
    half = Lengths().scaled(0.5)
    assert half.reference_ps == 20.0 and half.proposals == 50
    assert (half.impulse_windows, half.impulse_window_ps) == (16, 5.0) and half.checked_window_ps == 20.0


def sampled(scheme=EXACT, *, torsion=0.4, calls=1000, cpu_s=10.0, samples=None, crossings=500, seed=0, **changes):
    """A row of a benchmark: `torsion` samples per true call, learning 100 s and burn-in 20 s."""
    n = torsion * calls if samples is None else samples
    entry = {"samples": n, "standard_error": 0.1 * n, "crossings": crossings, "crossings_per_sample": 0.5}
    row = {"samples": n, "standard_error": 0.1 * n, "per_call": rates.per(entry, calls),
           "per_cpu_s": rates.per(entry, cpu_s)}
    return {"scheme": scheme, "seed": seed, "acceptance": 0.9, "jump_fs": 2000.0,
            "tuning": {"moves": 10, "network_ladder_K": [300.0, 400.0]}, "training": {"cpu_s": 100.0},
            "cost": {"cpu_s_burn_in": 20.0, "cpu_s_production": cpu_s, "true_calls_production": calls},
            "samples": {"energy": row, "torsion": row, "slowest_torsion_label": "t", "all": {"torsions": {"t": entry}}},
            **changes}


def entry_of(rows, rivals, *, call_cost_s=None, found=None):
    by_seed = [{row["seed"]: row for row in side} for side in (rows, rivals)]
    return samplers.beside(Variant(EXACT, call_cost_s), by_seed[0], [], by_seed[1], RIVAL, found)


def test_samplers_are_set_against_each_other_on_one_network():
    mine, rival = sampled(torsion=0.4, cpu_s=20.0), sampled(RIVAL, torsion=0.1, cpu_s=10.0)
    own = samplers.figures(mine)
    assert own["torsion_per_1000_calls"]["value"] == pytest.approx(400) and own["moves"] == 10
    assert own["torsion_per_cpu_s"] == {"value": pytest.approx(20), "error": pytest.approx(2), "samples": 400}
    assert own["few"]["cpu_s"] == {"value": pytest.approx(100 + 20 + 200 / 20), "error": pytest.approx(1)}
    told = samplers.over(mine, rival)
    assert told["torsion_per_call"]["value"] == pytest.approx(4)
    assert told["torsion_per_cpu_s"]["value"] == pytest.approx(2)
    assert told["few"]["value"] == pytest.approx(140 / 130)
    assert "few_at_least" not in told


def test_a_rival_without_samples_bounds_the_ratio_from_below():
    """Three crossings in 1000 calls: at most 7.75 expected at 95 %, two of them a sample's worth."""
    rival = sampled(RIVAL, samples=3.0, crossings=3, cpu_s=10.0)
    told = samplers.over(sampled(torsion=0.4, cpu_s=20.0), rival)
    assert told["torsion_per_call"] is None and told["few"] is None
    most = 7.7537 / 0.5
    assert told["torsion_per_call_at_least"] == pytest.approx(0.4 / (most / 1000), rel=1e-4)
    assert told["torsion_per_cpu_s_at_least"] == pytest.approx(20 / (most / 10), rel=1e-4)
    assert told["few_at_least"] == pytest.approx((120 + 200 / (most / 10)) / 130, rel=1e-4)
    mixed = [told, samplers.over(sampled(torsion=4.0, seed=1), sampled(RIVAL, torsion=0.1, seed=1)),
             samplers.over(sampled(torsion=0.5, seed=2), sampled(RIVAL, torsion=0.5, seed=2))]
    assert samplers.middle(mixed, "torsion_per_cpu_s") == ({"value": pytest.approx(20 / most * 10, rel=1e-4),
                                                           "error": 0.0}, True)


AGREES = {"p": 0.4, "chains": [64, 64], "seen": {"populations": 0.008}, "largest": {}, "tests": {}}


def test_bars_of_the_samplers_are_medians_over_seeds():
    fast = [sampled(torsion=t, cpu_s=20.0, seed=seed) for seed, t in enumerate((0.3, 0.45, 0.9))]
    slow = [sampled(RIVAL, torsion=0.15, cpu_s=10.0, seed=seed) for seed in range(3)]
    entries = [entry_of(fast, slow, found=AGREES), entry_of(fast[:2], slow, call_cost_s=60.0)]
    found = bars_of(samplers=entries)
    assert found["torsion_per_1000_calls"]["value"] == pytest.approx(450)
    assert found["torsion_per_1000_calls"]["met"] is True and found["torsion_per_1000_calls"]["target"] == ">= 400"
    assert found["torsion_per_1000_dear_calls"]["value"] == pytest.approx(300)
    assert found["torsion_per_1000_dear_calls"]["met"] is False
    assert found["torsion_per_cpu_s_over_rival"]["value"] == pytest.approx(1.5) and RIVAL in found[
        "torsion_per_cpu_s_over_rival"]["bar"]
    assert found["few_cpu_s"]["value"] == pytest.approx(120 + 200 / 22.5)
    assert found["agreement_p"]["met"] is True
    assert found["cold_start_cpu_s"]["value"] == 45.0


@pytest.mark.parametrize("p, seen, met", [(0.4, 0.02, None), (0.001, 0.02, False), (0.001, 0.002, False), (0.4, 0.01,
                                                                                                         True)])
def test_agreement_counts_where_one_per_cent_would_have_been_seen(p, seen, met):
    entry = entry_of([sampled()], [sampled(RIVAL)], found={**AGREES, "p": p, "seen": {"populations": seen}})
    assert bars_of(samplers=[entry])["agreement_p"]["met"] is met


@pytest.mark.parametrize("torsion, met", [(4.0, True), (0.01, None)])
def test_a_lower_bound_meets_a_bar_and_never_misses_it(torsion, met):
    entry = entry_of([sampled(torsion=torsion, calls=10_000, cpu_s=100.0)], [sampled(RIVAL, samples=3.0, crossings=3)])
    assert bars_of(samplers=[entry])["torsion_per_cpu_s_over_rival"]["met"] is met


def test_what_is_said_of_a_sampler():
    said = samplers.sentence(entry_of([sampled(cpu_s=20.0)], [sampled(RIVAL, torsion=0.1)], found=AGREES))
    for words in ("acceptance 0.90", "10 moves per true call on 300/400 K", "400 +- 40 samples per 1000 true calls",
                  "in 130 +- 1 s", f"2 +- 0.28 times {RIVAL}"):
        assert words in said
    never = samplers.sentence(entry_of([sampled(samples=20.0)], [sampled(RIVAL, samples=3.0, crossings=3)]))
    assert "slowest torsion: fewer than 50 samples" in never and "times" not in never


@pytest.mark.parametrize("n_a, n_b, spread", [(64, 64, 1.0), (64, 192, 3.0)])
def test_chains_of_one_distribution_agree_as_often_as_p_says(n_a, n_b, spread):
    """Correlated columns, unequal sizes and covariances; a sum of squared deviations would be far off."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(10, 10))
    mixing[:, 1] = mixing[:, 0] * 1.01
    p = [agreement.same_mean(rng.normal(size=(n_a, 10)) @ mixing, spread * rng.normal(size=(n_b, 10)) @ mixing)["p"]
         for _ in range(400)]
    assert np.mean(p) == pytest.approx(0.5, abs=0.06)
    assert np.mean(np.array(p) < 0.05) == pytest.approx(0.05, abs=0.033)


def test_a_deviation_is_seen_where_it_is_said_that_it_would_be():
    rng = np.random.default_rng(1)
    seen = agreement.SEEN * np.sqrt(1 / 64 + 1 / 128)
    found = [agreement.same_mean(rng.normal(size=(64, 1)), rng.normal(size=(128, 1)) + seen)["p"] for _ in range(400)]
    assert np.mean(np.array(found) < 0.05) == pytest.approx(0.8, abs=0.07)
    apart = agreement.same_mean(np.zeros((9, 2)), np.ones((9, 2)))
    assert apart["p"] == 0.0 and agreement.same_mean(np.ones((9, 2)), np.ones((9, 2)))["p"] == 1.0
    assert agreement.same_mean(np.zeros((7, 1)), np.zeros((70, 1))) is None


def sampler_profile(seed, **changes):
    return characterise(synthetic.ethanol(seed, 32, 400, scheme=RIVAL, hop=0.5, correlation=0.2, **changes))


@pytest.mark.parametrize("changes, wrong", [({}, None), ({"bond_shift_A": 0.001}, "bonds"),
                                            ({"wells": [0] * 28 + [1] * 2 + [2] * 2}, "populations")])
def test_two_samplers_agree_but_for_what_is_put_wrong(changes, wrong):
    one, other = sampler_profile(1), sampler_profile(2, **changes)
    wells = rates.common_rotamers([rates.series_of(one)], [rates.series_of(other)])
    found = agreement.agreement([one], [other], wells)
    assert found["chains"] == [32, 32] and set(found["tests"]) == {"populations", "energy", "bonds", "angles",
                                                                   "together"}
    for kind in ("populations", "energy", "bonds", "angles"):
        assert (found["tests"][kind]["p"] < 1e-3) == (kind == wrong), kind
    shares = np.array([row["shares"] for row in found["populations"]])
    assert shares.sum(axis=0) == pytest.approx([1, 1])
    if wrong != "populations":
        assert np.abs(shares - 1 / 3).max() < 0.03 and 0.005 < found["seen"]["populations"] < 0.05
    assert f"{wrong or 'energy'} p = " in agreement.sentence(EXACT, RIVAL, found)


def test_populations_of_chains_heed_the_weights_of_frames():
    run = synthetic.ethanol(3, 16, 400, scheme=EXACT, hop=0.5)
    trans = np.abs(dihedrals_deg(run.pos, np.array([[0, 1, 2, 8]]))[:, 0]) > 120
    profile = characterise(replace(run, weight=np.where(trans, 4.0, 1.0)))
    wells = rates.common_rotamers([rates.series_of(profile)], [])
    shares = agreement.chain_means([profile], wells)["populations"].mean(axis=0)
    assert np.sort(shares) == pytest.approx([1 / 6, 1 / 6, 4 / 6], abs=0.03)  # 1/3 each without


def plan_in(out, level="qm"):
    path = ROOT / "configs" / f"{'md' if level == 'mm' else 'qm'}.yaml"
    return Plan(prepared_physics(out / "raw/ethanol", load_physics(path)), path, out, FAST, 2)


@pytest.mark.parametrize("level", ["qm", "mm"])
def test_the_commands_of_the_record_are_what_is_run(tmp_path, level):
    """Parsed as `kstep` parses it, every command of a plan gives the settings that its stage is called with."""
    molecule_from_smiles("CCO", "ethanol").save(tmp_path / "raw/ethanol/molecule.npz")
    plan, network = plan_in(tmp_path, level), tmp_path / "network.pt"
    calls = [*plan.references(), *plan.timed(), plan.learn(3),
             *(plan.sampler(variant, network, 4) for variant in plan.variants),
             *(call for scheme in ("impulse", "checked", "jump") for call in plan.dynamics(scheme, network))]
    for call in calls:
        name, *flags = call.words
        command = {"baseline": baseline, "sample": sample}[name]
        parser = make_parser("")
        command.add_flags(parser)
        parser.set_defaults(numbered=None)
        args, asked = parser.parse_args(flags), call.settings
        assert shlex.split(call.text) == ["kstep", *call.words]
        if name == "sample":
            typed = command.load(args)
            assert replace(typed, physics=asked.physics) == asked
            assert typed.physics.config == asked.physics.config
        else:
            (physics, out), = asked.targets
            assert command.load(args, None) == physics.config and args.out / "ethanol/trajectory.npz" == out
            assert (args.seed, args.first_replica, args.n_workers, args.resume, args.store_forces) == (
                asked.seed, asked.first_replica, asked.n_workers, asked.resume, asked.store_forces)


def test_a_kept_file_is_recorded_with_the_command_that_made_it(tmp_path, monkeypatch):
    """Shorter runs of an earlier call do not become long ones by another --effort or --seed."""
    def made(call, path):
        call.result.parent.mkdir(parents=True, exist_ok=True)
        call.result.write_bytes(b"")
        path.write_text("")
        return 0

    monkeypatch.setattr(runner, "run_apart", made)
    molecule_from_smiles("CCO", "ethanol").save(tmp_path / "raw/ethanol/molecule.npz")
    plan = plan_in(tmp_path)
    first = runner.Runner(tmp_path / "logs")
    call = plan.references()[0]
    assert first.run(call) and not first.kept and first.texts == {"plain_1fs": call.text}
    other_workers = replace(plan, n_workers=1).references()[0]
    again = runner.Runner(tmp_path / "logs")
    assert again.run(other_workers) and not again.kept
    longer = runner.Runner(tmp_path / "logs")
    assert longer.run(replace(plan, lengths=Lengths(), seed=5).references()[0])
    assert longer.texts == {"plain_1fs": call.text} and len(longer.kept) == 1
    assert longer.kept[0].startswith("plain_1fs is kept from another command") and call.text in longer.kept[0]


def write_files(out):
    """The layout of a finished benchmark, made of synthetic trajectories."""
    molecule_from_smiles("CCO", "ethanol").save(out / "raw/ethanol/molecule.npz")
    plan = plan_in(out)
    for dt, frames in ((0.25, 300), (0.5, 2000), (1.0, 2000), (2.0, 300)):
        for path in {plan.plain_path(dt), plan.timed_path(dt)}:
            timed = "timed" in str(path)
            run = synthetic.ethanol(int(8 * dt), 4, 300 if timed else frames, drift=0.5 if timed else None, hop=HOP,
                                    dt_fs=dt)
            run.metadata["true_calls"] = round(run.time_ps.max() * 4 * 1000 / dt)
            synthetic.save(path, run)
    run = synthetic.ethanol(9, 4, 2000, scheme="metropolis", hop=0.5, correlation=0.2)
    run.metadata.update(acceptance=0.9, tally={"macro_steps": 8000}, cpu_burn_in_s=1.0, true_calls_burn_in=80,
                        cpu_production_s=10.0, wall_production_s=5.0, true_calls_training=500, cpu_s_training=60.0,
                        true_calls=8080)
    synthetic.save(plan.path("metropolis", "seed_0"), run)
    for kind, drift in (("nvt", None), ("nve", 3.0)):
        run = synthetic.ethanol(10, 4, 100, scheme="jump", drift=drift, tally={"macro_steps": 400})
        run.metadata.update(cpu_burn_in_s=1.0, true_calls_burn_in=40, cpu_production_s=1.0, wall_production_s=1.0,
                            status="finished" if drift is None else "broke at macro-step 9: the SCF failed")
        synthetic.save(plan.path("jump", kind), run)
    return plan


def benchmark(out, *flags, expect=0, run=run_program):
    finished = run("src/07_benchmark.py", "--molecule", out / "raw/ethanol", "--out-dir", out, "--seeds", 0,
                   *flags)
    assert finished.returncode == expect, finished.stdout[-2000:] + finished.stderr[-2000:]
    assert expect == 0 or "Traceback" not in finished.stderr
    return finished


def test_files_that_are_there_are_judged_without_running_anything(tmp_path):
    write_files(tmp_path)
    finished = benchmark(tmp_path, "--sections", "jump", "--targets", TARGETS)
    result = json.loads((tmp_path / "benchmark.json").read_text())
    assert list(result["rows"]) == ["plain 0.25 fs", "plain 0.5 fs", "plain 1 fs", "plain 2 fs", "metropolis", "jump"]
    row = result["rows"]["metropolis"]
    assert row["drift"] is None and row["torsion_rate"] is None and row["acceptance"] == 0.9
    assert row["cost"]["true_calls_production"] == 8000
    assert result["rows"]["plain 1 fs"]["drift"]["drift_kJ_per_mol_ps"] == pytest.approx(0.5, abs=0.05)
    # per frame: 0.5 / 1.5 against 0.05 / 1.95, and a frame of plain MD takes 100 calls
    quotient = result["speed_up"][0]["torsion_per_call"]
    assert abs(quotient["value"] - 1300) < 3.5 * quotient["error"]
    rate = row["samples"]["torsion"]
    share = rate["per_call"]["value"] / rate["per_call_training_included"]["value"]
    assert share == pytest.approx(8580 / 8000, rel=1e-4)
    assert rate["per_cpu_s"]["value"] / rate["per_cpu_s_training_included"]["value"] == pytest.approx(71 / 10, rel=1e-4)
    assert result["rows"]["jump"]["drift"]["drift_kJ_per_mol_ps"] == pytest.approx(3.0, abs=0.3)
    assert "jump: the NVE run broke at macro-step 9" in finished.stdout and ">= 12x" in finished.stdout
    assert finished.stdout.strip() == (tmp_path / "table.txt").read_text().strip()


def test_references_begin_in_the_best_conformers(tmp_path):
    """A few replicas in the worst of them would never leave, and be the plain MD that all is compared with."""
    plan = write_files(tmp_path)
    few = replace(plan.physics.molecule, conformers=plan.physics.molecule.conformers[[0] * 7],
                  conformer_energies=np.arange(7.0))
    plan = replace(plan, physics=replace(plan.physics, molecule=few))
    numbers = [call.settings.first_replica for call in (*plan.references(), *plan.timed())]
    assert set(numbers) == {105, 301}  # a multiple of 7 each, which begins in the first


def test_the_networks_dynamics_needs_that_of_a_seed_and_no_other(tmp_path, monkeypatch):
    """The one of all seeds together (refit) is for impulse and checked."""
    plan, asked = write_files(tmp_path), []
    monkeypatch.setattr(sections, "run_network", lambda *given: asked.append(given[1:]))
    settings = sections.BenchmarkSettings(plan, seeds=(0,), sections=("network",))
    said, = [words for words in sections.run_sections(settings, None) if "for want of a network" in words]
    assert not asked and said.startswith("checked, impulse, nested, network:")
    network = plan.learned_checkpoint(0)
    network.parent.mkdir(parents=True)
    network.touch()
    said, = [words for words in sections.run_sections(settings, None) if "for want of a network" in words]
    assert asked == [(network, plan.path("metropolis", "seed_0"))] and said.startswith("checked, impulse: ")


@pytest.mark.parametrize("given", [False, True])
def test_a_dear_call_has_a_network_that_was_learned_for_it(tmp_path, given):
    """That of cheap calls, with which a bar would be met or missed, is not what a dear call would be given."""
    plan = replace(write_files(tmp_path), dear_call_s=60.0)
    network, calls = tmp_path / "network.pt", []
    for path in (network, plan.learned_checkpoint(0)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    class Recorded:
        def run(self, call, checkpoint=None):
            calls.append(call)

    settings = sections.BenchmarkSettings(plan, seeds=(0,), sections=(EXACT,), checkpoint=network if given else None)
    sections.run_sections(settings, Recorded())
    here, dear = (call.settings for call in calls)
    assert not here.learn and here.checkpoint == (network if given else plan.learned_checkpoint(0))
    assert dear.learn != given and dear.checkpoint == (network if given else None)
    assert here.hybrid.call_cost_s is None and dear.hybrid.call_cost_s == 60.0


def test_samplers_on_file_are_set_beside_each_other(tmp_path):
    """The preferred one in the cold start's own production and tuned for a dear call, its rival on the same network."""
    write_files(tmp_path)
    files = {"learn/seed_0": (11, 0.9, 16.0), f"{EXACT}/call_60s_seed_0": (12, 0.95, 40.0)}
    for label, (seed, hop, cpu_s) in files.items():
        run = synthetic.ethanol(seed, 16, 500, scheme=EXACT, hop=hop, correlation=0.0)
        run.metadata.update(acceptance=0.9, tally={"macro_steps": 8000}, cpu_burn_in_s=1.0, true_calls_burn_in=80,
                            cpu_production_s=cpu_s, wall_production_s=5.0, true_calls_training=500, cpu_s_training=60.0,
                            true_calls=8080, scheme_traits=SCHEMES[EXACT].traits.as_dict(), checkpoint_sha256="a",
                            tuning={"moves": 10, "network_ladder_K": [300.0, 420.0]})
        synthetic.save(tmp_path / f"{label}.npz", run)
    finished = benchmark(tmp_path, "--sections", "jump", "--targets", TARGETS, "--dear-call-s", 60, "--seeds", 0, 1)
    result = json.loads((tmp_path / "benchmark.json").read_text())
    names = [EXACT, f"{EXACT}, call of 60 s", RIVAL]
    assert list(result["rows"]) == ["plain 0.25 fs", "plain 0.5 fs", "plain 1 fs", "plain 2 fs", *names, "jump"]
    here, dear, rival = result["samplers"]
    assert [entry["name"] for entry in result["samplers"]] == names and rival["over_rival"] == []
    # per frame a torsion forgets with 0.9 here and 0.5 there, and a second buys 500 calls here and 800 there
    quotient = here["over_rival"][0]["torsion_per_call"]
    assert abs(quotient["value"] - (0.9 / 1.1) / (0.5 / 1.5)) < 3.5 * quotient["error"]
    of_cpu = here["over_rival"][0]["torsion_per_cpu_s"]["value"] / quotient["value"]
    assert of_cpu == pytest.approx(10 / 16, rel=1e-3)
    assert here["seeds"][0]["few"]["training_cpu_s"] == 60.0
    assert here["speed_up"] == result["speed_up"] and result["sampler_seeds"][0]["scheme"] == EXACT
    assert here["agreement"]["p"] is None  # four chains of the rival
    assert "too few chains" in finished.stdout and f"times {RIVAL} per CPU second" in finished.stdout
    assert "300/420" in finished.stdout and dear["seeds"][0]["moves"] == 10
    assert f"{EXACT}: seeds 1 left no file, and its medians are of the others" in finished.stdout


@pytest.mark.parametrize("spoil, words", [
    (lambda plan: plan.plain_path(1.0).unlink(), "nothing to compare with; run the section plain"),
    (lambda plan: plan.plain_path(0.5).write_text("no"), "truncated or not an npz file"),
    (lambda plan: plan.timed_path(1.0).unlink(), "a true call has no price"),
    (lambda plan: synthetic.save(plan.plain_path(1.0), synthetic.ethanol(0, 2, 50, dt_fs=0.5)), "not at 1 fs; choose "
                                                                                                "another --out-dir"),
    (lambda plan: synthetic.save(plan.plain_path(1.0), synthetic.ethanol(0, 2, 50, dt_fs=1.0, method="other")),
     "one method"),
    (lambda plan: (plan.out / "costs.json").write_text("[1]"), "costs.json is not what a benchmark wrote"),
])
def test_files_that_do_not_fit_are_one_sentence(tmp_path, spoil, words):
    spoil(write_files(tmp_path))
    finished = benchmark(tmp_path, "--sections", "jump", expect=2)
    assert words in finished.stderr
    assert len([line for line in finished.stderr.splitlines() if line.startswith("error")]) == 1


def test_wrong_flags_are_one_sentence(tmp_path):
    molecule_from_smiles("CCO", "ethanol").save(tmp_path / "raw/ethanol/molecule.npz")
    molecule_from_smiles("CCO", "ethanol").save(tmp_path / "raw/other/molecule.npz")
    for flags, words in ((("--checkpoint", tmp_path / "none.pt"), "none.pt does not exist"),
                         (("--sections", "plane"), "invalid choice"), (("--effort", "0"), "not a number > 0"),
                         (("--molecule", tmp_path / "raw/other"), "name the folder after its molecule"),
                         (("--molecule", tmp_path / "raw/none"), "a prepared folder that does not exist")):
        assert words in benchmark(tmp_path, *flags, expect=2).stderr


@pytest.fixture(scope="module")
def mm(tmp_path_factory):
    """Prepared ethanol with MMFF94, and a network fitted to some hundreds of its energies."""
    out = tmp_path_factory.mktemp("benchmark")
    (out / "one.smi").write_text("CCO ethanol\n")
    assert run_program("src/00_prep_mols.py", "--smiles", out / "one.smi", "--out-dir", out / "raw").returncode == 0
    from kstep.config import load_config
    from kstep.forces import physics_spec
    from kstep.forces.openmm import MDConfig
    from kstep.models import checkpoint as checkpoints
    from kstep.models.model_config import ModelConfig
    from kstep.molecules.molecule import Molecule
    from kstep.training.label_fit import fit
    from kstep.training.labels import Labels
    from kstep.training.train_config import FitConfig

    molecule = Molecule.load(out / "raw/ethanol")
    physics = physics_spec(molecule, load_config(MDConfig, ROOT / "configs/md_fast.yaml"),
                           system_xml=out / "raw/ethanol/system.xml").build()
    rng = np.random.default_rng(0)
    x = molecule.conformers[rng.integers(len(molecule.conformers), size=900)]
    x = x + 0.004 * rng.standard_normal(x.shape)
    truth = [physics.energy_and_forces(frame) for frame in x]
    labels = Labels(x, [e for e, _ in truth], [f for _, f in truth], 300.0)
    result = fit(load_config(ModelConfig, ROOT / "configs/model_pair_mlp.yaml"), molecule, labels,
                 FitConfig(), passes=45, method=molecule.force_field, true_calls=300, dt_fs=1.0, temperature_K=300.0,
                 seed=0)
    checkpoints.save(out / "network.pt", result.checkpoint)
    return out


def test_a_tiny_benchmark_runs_from_end_to_end_and_keeps_what_is_there(mm):
    flags = ("--md-config", "configs/md_fast.yaml", "--checkpoint", mm / "network.pt", "--fast", "--reference-ps", 0.5,
             "--fine-reference-ps", 0.4, "--network-ps", 1, "--proposals", 10, "--sections", "plain", EXACT, RIVAL,
             "network")
    benchmark(mm, *flags, run=run_python)
    result = json.loads((mm / "benchmark.json").read_text())
    assert set(result["rows"]) == {"plain 0.25 fs", "plain 0.5 fs", "plain 1 fs", "plain 2 fs", EXACT, RIVAL}
    for scheme in (EXACT, RIVAL):
        assert result["rows"][scheme]["acceptance"] > 0.05
        assert result["rows"][scheme]["training"]["true_calls"] == 300
    assert [entry["name"] for entry in result["samplers"]] == [EXACT, RIVAL]
    assert result["samplers"][0]["agreement"]["chains"] == [FAST.replicas, FAST.replicas]
    assert result["samplers"][0]["agreement"]["p"] > 1e-4 and result["samplers"][0]["seeds"][0]["moves"] >= 1
    assert result["inner_step"]["us_per_replica_step"] > 0
    certificate = network_reference.load(mm / "network_dynamics.npz")[1]["certificate"]
    assert certificate["pairs"] == FAST.replicas
    # this network is so small that it depends on the tuned sampler, where it starts, whether it stays near the truth
    assert bool(result["plain_rates"]["network"]) == (certificate["spread_kJ_per_mol"] <= kT(300.0))
    assert result["commands"]["plain_1fs"].startswith(f"kstep baseline {mm}/raw/ethanol --config ")
    # production alone is less than what the command took with its imports and tuning
    costs, row = json.loads((mm / "costs.json").read_text()), result["rows"][EXACT]
    before = costs[f"{EXACT}/seed_0"] - row["cost"]["cpu_s_production"]
    assert row["cost"]["cpu_s_burn_in"] == pytest.approx(before, rel=1e-3)
    stamp = (mm / f"{EXACT}/seed_0.npz").stat().st_mtime_ns
    # the second time everything is kept, and a file of another network is not taken for this one's
    other = mm / "other.pt"
    other.write_bytes((mm / "network.pt").read_bytes() + b" ")
    finished = benchmark(mm, *flags, "--checkpoint", other, expect=2)
    assert (mm / f"{EXACT}/seed_0.npz").stat().st_mtime_ns == stamp and finished.stderr.count("kept: ") == 6
    assert "was made with another network" in finished.stderr
