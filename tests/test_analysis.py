"""The judgement of trajectories, on cases whose answer is known."""

import json
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import synthetic
from kstep.analysis.evaluate import evaluate, load_baseline
from kstep.analysis.judge.compare import check_comparable, compare
from kstep.analysis.judge.controls import BASELINE, judge
from kstep.analysis.judge.verdict import Outcome
from kstep.analysis.measure import energy, geometry, spectra, statistics, torsions
from kstep.analysis.measure.profile import characterise
from kstep.analysis.metrics.cost import cost_of
from kstep.analysis.show.words import sentence_of
from kstep.dihedrals import dihedrals_deg
from kstep.errors import UserError
from kstep.schemas import Trajectory, complete_trajectory, join_trajectories, load_trajectory
from kstep.units import WAVENUMBER_PER_THZ, kT

SCRIPTS = Path(__file__).parent.parent / "src"


# errors of averages

def test_statistical_inefficiency_is_pymbars():
    rng = np.random.default_rng(0)
    logging.getLogger("pymbar").setLevel(logging.ERROR)
    from pymbar import timeseries

    series = synthetic.autoregressive(rng, 3000, 3, 0.9)
    ours = statistics.statistical_inefficiency([series])
    theirs = [timeseries.statistical_inefficiency(x) for x in series.T]
    assert ours == pytest.approx(theirs, rel=1e-9)
    short, long = series[:700], series[700:]
    # pymbar's estimator for several series waits ten lags instead of three
    ours = statistics.statistical_inefficiency([short, long], minimum_lag=10)
    theirs = [timeseries.statistical_inefficiency_multiple([a, b]) for a, b in zip(short.T, long.T)]
    assert ours == pytest.approx(theirs, rel=1e-9)


def test_statistical_inefficiency_of_an_autoregressive_series():
    rng = np.random.default_rng(1)
    series = [synthetic.autoregressive(rng, 50_000, 8, 0.9) for _ in range(4)]
    assert statistics.statistical_inefficiency(series).mean() == pytest.approx(19.0, rel=0.05)  # (1 + c) / (1 - c)


def test_a_constant_has_as_many_samples_as_frames():
    found = statistics.estimate_means([np.full((100, 1), 0.1)], 1.0)
    assert found.n_eff[0] == 100 and found.mean_variance[0] < 1e-30


def test_replicas_stuck_in_different_wells_count_as_few_samples():
    rng = np.random.default_rng(2)
    stuck = [w + 0.1 * rng.standard_normal((500, 1)) for w in (-1.0, 1.0, -1.0, 1.0)]
    assert statistics.estimate_means(stuck, 1.0).n_eff[0] < 10


def test_error_of_an_oscillating_bond_is_that_of_its_slow_part():
    # cos hides a slow drift of the mean from the first-zero rule; blocks of 50 fs bring it back
    rng = np.random.default_rng(3)
    time = np.arange(20_000) * 0.001
    slow = [synthetic.autoregressive(rng, len(time), 1, 0.999)[:, 0] for _ in range(64)]
    series = [np.cos(2 * np.pi * time / 0.011 + 9.0 * r) + 0.3 * s for r, s in enumerate(slow)]
    errors = [statistics.estimate_means([x[:, None]], 0.001).standard_error[0] for x in series]
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std([x.mean() for x in series]), rel=0.3)


def test_a_short_replica_beside_long_ones_leaves_the_error_of_an_oscillation_as_it_is():
    """Blocks as short as a quarter of the shortest replica would see the vibration of all, and not what is slow."""
    rng = np.random.default_rng(2)
    slow = synthetic.autoregressive(rng, 10_000, 3, np.exp(-0.002)).T[:, :, None]  # 1 ps at 2 fs
    vibration = np.cos(2 * np.pi * np.arange(10_000) / 5.5 + np.array([0.0, 2.0, 4.0])[:, None])[:, :, None]
    long = list(0.3 * slow + 1.4 * vibration)
    alone = statistics.estimate_means(long, 0.002)
    beside = statistics.estimate_means([*long, long[0][:8]], 0.002)
    assert beside.standard_error[0] == pytest.approx(alone.standard_error[0], rel=0.05)


def test_split_r_hat_flags_two_wells():
    rng = np.random.default_rng(4)
    same = [rng.standard_normal((400, 1)) for _ in range(4)]
    apart = [x + 3.0 * (r % 2) for r, x in enumerate(same)]
    assert statistics.split_r_hat(same)[0] < 1.02
    assert statistics.split_r_hat(apart)[0] > 1.5


# distances between distributions

@pytest.mark.parametrize("apart, agrees", [(0.0, True), (1.2, False)])
def test_split_r_hat_reads_all_of_long_replicas_beside_a_short_one(apart, agrees):
    """Not as many frames at the ends of each as the short one has: ten of them say nothing of a thousand."""
    rng = np.random.default_rng(5)
    long = [synthetic.autoregressive(rng, 1000, 1, 0.8) + apart * (r % 2) for r in range(4)]
    short = synthetic.autoregressive(rng, 10, 1, 0.8)
    alone, beside = statistics.split_r_hat(long)[0], statistics.split_r_hat([*long, short])[0]
    assert beside == pytest.approx(alone, abs=0.02)
    assert (beside < 1.05) == agrees


def test_split_r_hat_of_a_constant_is_1_under_weights_too():
    rng = np.random.default_rng(0)
    constant = [np.full((14, 1), 0.1)] * 3  # whose weighted means differ in their last bit
    assert statistics.split_r_hat(constant, [0.1 + rng.random(14) for _ in range(3)])[0] == 1.0
    assert statistics.split_r_hat([np.full((14, 1), 0.1 * r) for r in range(3)])[0] == np.inf


def test_wasserstein_of_a_shift_is_the_shift():
    grid = np.linspace(-5, 5, 2000)
    p, q = np.exp(-0.5 * grid**2), np.exp(-0.5 * (grid - 0.25) ** 2)
    assert statistics.wasserstein_1(p, q, grid[1] - grid[0]) == pytest.approx(0.25, rel=1e-3)


def test_wasserstein_across_the_seam_goes_the_short_way():
    p, q = np.zeros(360), np.zeros(360)
    p[1], q[358] = 1.0, 1.0  # -178.5 and 178.5 degrees
    assert statistics.wasserstein_1(p, q, 1.0, circular=True) == pytest.approx(3.0)
    assert statistics.wasserstein_1(p, q, 1.0) == pytest.approx(357.0)


def test_jensen_shannon_is_zero_for_equal_and_one_for_disjoint():
    p = np.array([0.5, 0.5, 0.0, 0.0])
    assert statistics.jensen_shannon(p, p) == pytest.approx(0.0)
    assert statistics.jensen_shannon(p, p[::-1]) == pytest.approx(1.0)


# geometry and torsions

def test_angles_and_dihedrals_are_mdtrajs():
    import mdtraj

    pos = np.random.default_rng(5).normal(size=(20, 6, 3))
    topology = mdtraj.Topology()
    residue = topology.add_residue("X", topology.add_chain())
    for _ in range(6):
        topology.add_atom("C", mdtraj.element.carbon, residue)
    reference = mdtraj.Trajectory(pos, topology)
    triples, quadruples = np.array([[0, 1, 2], [3, 4, 5]]), np.array([[0, 1, 2, 3], [2, 3, 4, 5]])
    assert geometry.angles_deg(pos, triples) == pytest.approx(
        np.degrees(mdtraj.compute_angles(reference, triples)), abs=1e-2)
    assert dihedrals_deg(pos, quadruples) == pytest.approx(
        np.degrees(mdtraj.compute_dihedrals(reference, quadruples)), abs=1e-2)


def test_methyl_hydrogens_are_one_quantity():
    found = geometry.find_coordinates(synthetic.NUMBERS, synthetic.BONDS)
    assert found.labels["bonds"] == ["C0-C1", "C1-O2", "C0-H3 (x3)", "C1-H6 (x2)", "O2-H8"]
    assert len(geometry.find_coordinates(synthetic.NUMBERS, synthetic.BONDS, pool_hydrogens=False).labels["bonds"]) == 8


def test_three_rotamers_are_found_and_recrossings_are_not_counted():
    rng = np.random.default_rng(6)
    angles = torsions.wrap_deg(np.repeat([180.0, 60.0, -60.0, 180.0], 5000) + 12 * rng.standard_normal(20_000))
    histogram, _ = np.histogram(angles, 360, (-180, 180))
    centres = torsions.find_rotamers(histogram)
    assert np.sort(np.abs(centres)) == pytest.approx([60, 60, 180], abs=4)
    assert torsions.count_transitions(angles, centres) == 3
    barrier = torsions.wrap_deg(np.array([60.0, 118, 122, 118, 122, 118, 60, 122, 175]))
    assert torsions.count_crossings(barrier, centres) == (1, 2)  # three frames in cores are two chances


def test_draws_cross_as_the_cores_are_populated():
    histogram = np.zeros(360)
    histogram[[180, 300, 240]] = 30, 10, 60  # at 0 and 120 degrees, and on the barrier, which no core holds
    centres = np.array([0.5, 120.5])
    assert torsions.crossings_per_chance(histogram, centres) == pytest.approx(2 * 0.75 * 0.25)
    assert torsions.crossings_per_chance(histogram, centres[:1]) == torsions.crossings_per_chance(histogram, []) == 0


# energy, temperature, spectrum

def test_drift_interval_covers_the_known_slope():
    covered = 0
    for seed in range(40):
        drift = energy.energy_drift(synthetic.ethanol(seed, 1, 4, drift=0.4, spacing_ps=0.05))
        low, high = drift["confidence_95"]
        covered += low <= 0.4 <= high
        assert drift["windows"] == 4
    assert 33 <= covered <= 40  # 38 expected


def test_blow_up_is_reported_with_its_time():
    trajectory = synthetic.ethanol(0, 1, 4, drift=0.0, spacing_ps=0.05)
    frames = np.flatnonzero(trajectory.segment == 2)
    trajectory.Etot[frames[30:]] += 1e4
    drift = energy.energy_drift(trajectory)
    assert drift["blown_up_segments"] == 1
    assert drift["first_blow_up_ps"] == pytest.approx(1.5)


@pytest.mark.parametrize("scale, right", [(1.0, True), (2.0, False), (1.05, False)])
def test_temperature_and_kinetic_energy_know_maxwell_velocities(scale, right):
    result = compare(synthetic.ethanol(0, 4, 500), synthetic.ethanol(1, 4, 800, velocity_scale=scale))
    for element in ("H", "C", "O", "all"):
        entry = result["temperature"][element]
        assert entry["temperature_K"] == pytest.approx(300.0 * scale**2, abs=5 * entry["standard_error_K"])
        if scale != 1.05 or element in ("H", "all"):
            assert (entry["verdict"] == "right") == right
    assert (result["kinetic"]["p_value"] > 0.01) == right


def vibrating_diatomic(frequency_cm, seed=0, segments=6, length_ps=1.0, dt_ps=0.0005):
    """O-H along x, its stretch a pure cosine; NVE segments with random phases."""
    rng = np.random.default_rng(seed)
    masses = np.array([15.999, 1.008])
    time = np.arange(int(length_ps / dt_ps)) * dt_ps
    omega = 2 * np.pi * frequency_cm / WAVENUMBER_PER_THZ
    pos, vel = [], []
    for phase in rng.uniform(0, 2 * np.pi, segments):
        stretch, speed = 0.005 * np.cos(omega * time + phase), -0.005 * omega * np.sin(omega * time + phase)
        share = np.array([-masses[1], masses[0]]) / masses.sum()
        p, v = np.zeros((len(time), 2, 3)), np.zeros((len(time), 2, 3))
        p[:, :, 0] = share * (0.097 + stretch)[:, None]
        v[:, :, 0] = share * speed[:, None]
        pos.append(p)
        vel.append(v)
    n = segments * len(time)
    arrays = complete_trajectory({
        "pos": np.concatenate(pos), "vel": np.concatenate(vel), "Ekin": np.zeros(n), "Epot": np.zeros(n),
        "Etot": np.zeros(n), "time_ps": np.tile(time, segments), "step": np.tile(np.arange(len(time)), segments),
        "replica": np.repeat(np.arange(segments), len(time)), "segment": np.repeat(np.arange(segments), len(time)),
        "masses": masses, "masses_sampler": masses, "atom_types": np.array([8, 1]), "bonds": np.array([[0, 1]])})
    table = [{"replica": r, "role": "train", "ensemble": "NVE", "temperature_K": 300.0, "n_dof": 3}
             for r in range(segments)]
    return Trajectory(**arrays, metadata={"molecule": "hydroxyl", "method": "synthetic", "scheme": "plain",
                                          "dt_fs": 0.5, "segments": table})


def test_harmonic_stretch_lies_at_its_wavenumber():
    found = spectra.spectrum(vibrating_diatomic(3600.0), 0.99)
    assert found["stretches"]["O-H"]["position_cm"] == pytest.approx(3600.0, abs=3)
    assert spectra.GRID_CM[found["density"].argmax()] == pytest.approx(3600.0, abs=4)


def test_stretch_shift_is_found():
    result = compare(vibrating_diatomic(3600.0), vibrating_diatomic(3640.0, seed=1))
    assert result["stretches"]["O-H"]["shift_cm"] == pytest.approx(40.0, abs=4)


def test_error_of_a_stretch_is_that_of_so_few_replicas():
    """sigma / sqrt(n) with the n - 1 of an estimate: drawing three replicas anew spreads by sqrt(2/3) of it."""
    at = np.array([3570.0, 3600.0, 3645.0])
    joined = join_trajectories([vibrating_diatomic(f, segments=1) for f in at])
    found = spectra.spectrum(joined, 0.99)["stretches"]["O-H"]
    assert found["position_cm"] == pytest.approx(at.mean(), abs=3)
    assert found["error_cm"] == pytest.approx(at.std(ddof=1) / np.sqrt(3), rel=0.1)


# comparison and floor

@pytest.fixture(scope="module")
def reference():
    return characterise(synthetic.ethanol(0, 6, 3000, drift=0.0))


def test_spread_of_replicas_raises_an_error_that_short_series_underrate():
    rng = np.random.default_rng(7)
    errors, means = [], []
    for _ in range(60):
        series = [synthetic.autoregressive(rng, 200, 6, 0.97) for _ in range(6)]  # three samples each
        found = statistics.estimate_means(series, 1.0)
        errors.append(found.mean_variance)
        means.append(found.mean)
    assert np.sqrt(np.mean(errors)) == pytest.approx(np.std(means), rel=0.25)


def test_floor_matches_the_difference_of_equal_distributions(reference):
    ratios = {"bond_rmse_A": [], "angle_rmse_deg": [], "bond_w1_A": [], "rdf_l1": []}
    for seed in range(8):
        own = characterise(synthetic.ethanol(20 + seed, 6, 3000))
        run = synthetic.ethanol(100 + seed, 6, 400, scheme="metropolis", correlation=0.3, hop=0.3, spacing_ps=0.5)
        result = compare(own, run)["structure"]
        for key, values in ratios.items():
            values.append(result[key]["ratio"])
    for key, values in ratios.items():
        assert np.mean(values) == pytest.approx(1.0, abs=0.35), key


def test_pair_floor_agrees_with_the_one_from_standard_errors(reference):
    run = synthetic.ethanol(1, 6, 400, scheme="metropolis", correlation=0.3, hop=0.3, spacing_ps=0.5)
    for key in ("bond_rmse_A", "angle_rmse_deg", "rdf_l1"):
        entry = compare(reference, run)["structure"][key]
        assert entry["floor"] == pytest.approx(entry["floor_expected"], rel=0.4)
        assert 0 < entry["floor_error"] < entry["floor"]


def test_shifted_bonds_are_above_the_floor(reference):
    result = compare(reference, synthetic.ethanol(2, 6, 2000, bond_shift_A=0.01))["structure"]
    assert result["bond_rmse_A"]["value"] == pytest.approx(0.01, rel=0.1)
    assert result["bond_rmse_A"]["verdict"] == "above floor"
    assert result["bond_w1_A"]["verdict"] == "above floor"
    assert result["angle_rmse_deg"]["verdict"] == "within floor"


def test_one_replica_gives_no_floor():
    result = compare(synthetic.ethanol(0, 1, 500), synthetic.ethanol(1, 2, 500))
    assert result["structure"]["bond_rmse_A"]["verdict"] == "no floor"
    assert "one replica" in result["warnings"][0]


def test_gaussian_energy_errors_fulfil_the_identity(reference):
    run = synthetic.ethanol(3, 8, 500, scheme="metropolis", delta_H_sigma=0.8)
    found = compare(reference, run)["proposals"]
    assert found["verdict"] == "holds"
    assert found["exp_minus_beta_dH"] == pytest.approx(1.0, abs=4 * found["standard_error"])
    assert found["standard_error"] == pytest.approx(np.sqrt((np.exp(0.64) - 1) / 4000), rel=0.3)
    run.delta_H[::5] = np.inf  # the truth had no number there, which is a wall
    run.accepted[::5] = False
    again = compare(reference, run)["proposals"]
    assert again["verdict"] == "holds" and again["count"] == found["count"]
    assert again["acceptance"] < found["acceptance"]
    run.delta_H += 0.2 * kT(300.0)
    assert compare(reference, run)["proposals"]["verdict"] == "violated"


def test_metropolis_has_no_drift_spectrum_or_rate(reference):
    result = compare(reference, synthetic.ethanol(3, 4, 500, scheme="metropolis", drift=0.3))
    assert result["drift"] is None and result["stretches"] is None
    assert result["torsions"][0]["rate_per_ps"] is None


def test_a_torsion_never_crossed_is_listed_and_not_converged(reference):
    result = compare(reference, synthetic.ethanol(4, 4, 1000, scheme="metropolis", wells=[0, 1, 0, 1]))
    assert result["sampling"]["never_crossed"] == ["C0-C1-O2-H8"]
    assert result["sampling"]["slowest_torsion"] is None
    assert result["torsions"][0]["convergence"] == "not converged"
    plain = compare(reference, synthetic.ethanol(5, 4, 1000))
    (verdict,) = judge(result, {"control": plain})
    assert verdict["outcome"] == Outcome.LOST and {"what": "slowest torsion", "samples": 0.0}.items() <= next(
        lost for lost in verdict["lost_on"] if lost["what"] == "slowest torsion").items()
    assert sentence_of(verdict, "hybrid").startswith("does not beat plain MD")


def test_a_torsion_has_no_more_samples_than_its_crossings_allow(reference):
    # one replica that leaves its well once: fast wiggling within the well is not sampling
    run = synthetic.ethanol(4, 1, 2000, scheme="metropolis", correlation=0.1, wells=[0])
    moved, _ = synthetic.one_replica(np.random.default_rng(0), 1000, 0.1, 0.0, 0.0, well=1)
    run.pos[1020:2020] = moved
    torsion = compare(reference, run)["torsions"][0]
    assert torsion["transitions"] == 1
    assert torsion["effective_samples"] < 3
    assert torsion["convergence"] == "not converged"


def test_a_rotamer_the_reference_never_saw_is_named():
    result = compare(synthetic.ethanol(0, 4, 500, wells=[1, 2, 1, 2]), synthetic.ethanol(1, 4, 500))
    assert np.abs(result["torsions"][0]["new_rotamers_deg"][0]) > 170
    assert any("never did" in warning for warning in result["warnings"])


def test_more_samples_per_call_beat_plain_and_fewer_do_not(reference):
    fast = compare(reference, synthetic.ethanol(6, 4, 1000, scheme="metropolis", correlation=0.2, hop=0.5,
                                                true_calls=4080, true_calls_training=10**9))
    slow = compare(reference, synthetic.ethanol(7, 4, 1000, true_calls=40_000))
    (same,) = judge(fast, {"control": slow})  # 40 000 calls say nothing of a billion
    assert same["outcome"] == Outcome.WON and not same["lost_on"]
    assert sentence_of(same, "hybrid").startswith("beats plain MD (control)")
    same, trained = judge(fast, {"control": slow, BASELINE: slow})
    assert same["outcome"] == Outcome.WON and trained["outcome"] == Outcome.LOST
    assert sentence_of(trained, "hybrid").startswith(
        f"does not beat plain MD ({BASELINE}) at the same number of true calls, training included")


def test_hot_rungs_of_a_ladder_are_paid_for_but_are_no_trajectory():
    replica = np.repeat([0, 1, 2], 2)
    run = SimpleNamespace(replica=replica, step=np.tile([500, 1000], 3), time_ps=np.tile([0.5, 1.0], 3),
                          frames_of=lambda role: np.flatnonzero(replica > 0) if role == "hot" else [],
                          metadata={"scheme": "metropolis", "true_calls": 6, "wall_s": 3.0,
                                    "tally": {"attempts": {"1": 6}}, "config": {"tempering_K": [300, 400, 500]}})
    found = cost_of(run, 0.5)
    assert (found["simulated_ps"], found["true_calls"], found["wall_s_per_ps"]) == (0.5, 6, 6.0)
    run.metadata["config"] = {}
    assert cost_of(run, 0.5)["simulated_ps"] == 1.5


def test_other_method_atoms_or_temperature_are_refused(reference):
    with pytest.raises(UserError, match="compare runs of one method"):
        compare(reference, synthetic.ethanol(1, 2, 50, method="GFN2-xTB"))
    other = synthetic.ethanol(1, 2, 50)
    other.atom_types = other.atom_types[::-1].copy()
    with pytest.raises(UserError, match="atoms of 'ethanol' differ"):
        compare(reference, other)
    warm = synthetic.ethanol(1, 2, 50)
    for segment in warm.segments:
        segment["temperature_K"] = 400.0
    with pytest.raises(UserError, match="no production frames at 400 K"):
        compare(reference, warm)


@pytest.mark.parametrize("key, here, there, words", [
    ("smiles", "C/C=C/C", "C/C=C\\C", "two stereoisomers"), ("smiles", "C[C@H](O)F", "O[C@H](C)F", "two stereoisomers"),
    ("charge", 0, 1, "two energy surfaces"), ("multiplicity", 1, 3, "two energy surfaces"),
    ("smiles", "C[C@H](O)F", "O[C@@H](C)F", None), ("smiles", "C[C@H](O)F", "CC(O)F", None),
    ("smiles", "[13CH3]/C=C/C", "C/C=C/C", None), ("charge", None, 1, None)])
def test_isomers_and_ions_under_one_name_are_not_compared(key, here, there, words):
    ethanol = synthetic.ethanol(0, 2, 20)
    base, run = (replace(ethanol, metadata={**ethanol.metadata, key: value}) for value in (here, there))
    if words is None:
        check_comparable(base, run)
        return
    with pytest.raises(UserError, match=words):
        check_comparable(base, run)


def test_bonds_between_other_atoms_of_the_same_valences_are_not_compared():
    """A chain 0-1-2-3 and a chain 0-2-1-3 have as many bonds at each atom."""
    chain, other = (replace(synthetic.ethanol(0, 2, 20), bonds=np.array(bonds)) for bonds in (
        [[0, 1], [1, 2], [2, 3]], [[0, 2], [1, 2], [1, 3]]))
    check_comparable(chain, replace(chain, bonds=chain.bonds[::-1, ::-1]))
    with pytest.raises(UserError, match="bonds of 'ethanol' differ"):
        check_comparable(chain, other)


# the scripts

@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("eval")
    synthetic.save(root / "data/ethanol/trajectory.npz", synthetic.ethanol(0, 2, 600, drift=0.0))
    synthetic.save(root / "data/ethanol/trajectory_seed1.npz", synthetic.ethanol(1, 2, 600, drift=0.0))
    synthetic.save(root / "hybrid/ethanol_k8.npz", synthetic.ethanol(2, 4, 300, scheme="metropolis"))
    synthetic.save(root / "hybrid/ethanol_plain.npz", synthetic.ethanol(3, 4, 300, spacing_ps=0.0005))
    return root


def run_script(name, *arguments):
    return subprocess.run([sys.executable, SCRIPTS / name, *map(str, arguments)], capture_output=True, text=True)


def test_05b_writes_metrics_plots_and_a_page_that_needs_nothing_else(folders):
    out = folders / "out"
    done = run_script("05b_eval_qm.py", "--baseline", folders / "data", "--hybrid", folders / "hybrid",
                      "--out-dir", out)
    assert done.returncode == 0, done.stderr
    assert "within floor" in done.stdout and "plain MD" in done.stdout
    metrics = json.loads((out / "metrics.json").read_text())
    run = metrics["molecules"]["ethanol"]["runs"]["ethanol_k8.npz"]
    assert run["reference_replicas"] == 4
    assert list(run["control_files"].values()) == ["ethanol_plain.npz"]
    assert {"energy", "rdf", "bonds", "angles", "torsions", "temperature", "proposals"} <= set(run["plots"])
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64") >= 7
    assert "http" not in page and "<script" not in page


def test_05_reports_a_bad_file_judges_the_others_and_exits_2(folders, tmp_path):
    import shutil

    shutil.copytree(folders / "hybrid", tmp_path / "hybrid")
    whole = (tmp_path / "hybrid/ethanol_plain.npz").read_bytes()
    (tmp_path / "hybrid/ethanol_plain.npz").write_bytes(whole[: len(whole) // 2])
    stray = synthetic.ethanol(5, 2, 40)
    stray.metadata["molecule"] = "ethanl"
    synthetic.save(tmp_path / "hybrid/stray.npz", stray)
    nan = synthetic.ethanol(6, 2, 40)
    nan.pos[7, 0, 0] = np.nan
    arrays = {k: v for k, v in vars(nan).items() if k != "metadata"}
    text = json.dumps({**nan.metadata, "schema": "trajectory", "schema_version": 1})
    np.savez(tmp_path / "hybrid/nan.npz", **arrays, metadata=np.array(text))
    done = run_script("05_eval_drift_rdfs.py", "--baseline", folders / "data", "--hybrid-runs", tmp_path / "hybrid",
                      "--out-dir", tmp_path / "out", "--rdf-max", "0.6", "--rdf-bins", "50")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "ethanol_plain.npz is truncated" in done.stderr
    assert "'ethanl' has no baseline; did you mean 'ethanol'?" in done.stderr
    assert "NaN" in done.stderr
    assert list(json.loads((tmp_path / "out/metrics.json").read_text())["molecules"]["ethanol"]["runs"]) == [
        "ethanol_k8.npz"]


def test_a_copy_of_a_baseline_is_named_and_counts_once(tmp_path):
    for seed, name in ((0, "trajectory"), (0, "copy"), (1, "other")):
        run = synthetic.ethanol(seed, 2, 40)
        synthetic.save(tmp_path / f"data/{name}.npz", replace(run, metadata={**run.metadata, "seed": seed}))
    synthetic.save(tmp_path / "run.npz", synthetic.ethanol(2, 2, 40))
    problems = evaluate(tmp_path / "data", tmp_path / "run.npz", tmp_path / "out", draw=False)[1]
    assert len(problems) == 1 and "this and another baseline are one run of ethanol" in problems[0]
    assert len(load_baseline(load_trajectory(tmp_path / "run.npz"), tmp_path / "data").pos) == 2 * 2 * (20 + 40)


def test_baselines_of_two_isotopes_are_not_joined(tmp_path):
    """Of velocities under each other's masses: deuterium would read as hydrogen at half of its temperature."""
    light, heavy = synthetic.ethanol(1, 2, 60), synthetic.ethanol(2, 2, 60)
    masses = np.where(synthetic.NUMBERS == 1, 2.014, synthetic.MASSES)
    heavy.vel *= np.sqrt(synthetic.MASSES / masses)[:, None]
    heavy.masses, heavy.masses_sampler = masses, masses
    for name, run in (("a_light", light), ("b_heavy", heavy)):
        synthetic.save(tmp_path / f"{name}.npz", run)
    metrics, problems = evaluate(tmp_path, tmp_path / "a_light.npz", tmp_path / "out", draw=False)
    assert len(problems) == 1 and "b_heavy.npz: its atoms have other masses" in problems[0]
    (reference,) = metrics["molecules"]["ethanol"]["reference"].values()
    assert reference["temperature"]["H"]["temperature_K"] == pytest.approx(300.0, abs=15)


def test_missing_baseline_is_one_sentence(folders, tmp_path):
    done = run_script("05b_eval_qm.py", "--baseline", tmp_path / "none", "--hybrid", folders / "hybrid",
                      "--out-dir", tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "does not exist" in done.stderr


def test_mixed_methods_are_named(folders, tmp_path):
    synthetic.save(tmp_path / "a.npz", synthetic.ethanol(5, 2, 40, method="GFN1-xTB"))
    with pytest.raises(UserError, match="run with GFN1-xTB but its baseline with synthetic"):
        evaluate(folders / "data", tmp_path, tmp_path / "out", draw=False)
