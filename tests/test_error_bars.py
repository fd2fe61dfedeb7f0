"""Error bars and thresholds against closed formulas: too narrow ones would flatter every verdict."""

import numpy as np
import pytest
from scipy import stats

import synthetic
from kstep.analysis.measure.energy import energy_drift
from kstep.analysis.measure.statistics import exponential_identity
from kstep.units import kT

KT = kT(300.0)


def drift_trajectory():
    return synthetic.ethanol(5, 1, 4, drift=0.4, spacing_ps=0.05)


def test_drift_interval_is_students_over_the_windows():
    trajectory = drift_trajectory()
    slopes = []
    for index, segment in enumerate(trajectory.segments):
        if segment["role"] == "drift":
            frames = np.flatnonzero(trajectory.segment == index)
            slopes.append(stats.linregress(trajectory.time_ps[frames], trajectory.Etot[frames]).slope)
    found = energy_drift(trajectory)
    assert found["windows"] == len(slopes) >= 4
    expected = stats.t.interval(0.95, len(slopes) - 1, np.mean(slopes), stats.sem(slopes))
    assert found["confidence_95"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("share, blown", [(0.8, 0), (1.2, 1)])
def test_blow_up_is_half_kt_per_degree_of_freedom(share, blown):
    trajectory = drift_trajectory()
    drifting = [i for i, s in enumerate(trajectory.segments) if s["role"] == "drift"]
    segment = trajectory.segments[drifting[0]]
    frames = np.flatnonzero(trajectory.segment == drifting[0])
    limit = 0.5 * segment["n_dof"] * kT(segment["temperature_K"])
    trajectory.Etot[frames] = trajectory.Etot[frames[0]]
    trajectory.Etot[frames[-1]] += share * limit
    assert energy_drift(trajectory)["blown_up_segments"] == blown


@pytest.mark.parametrize("correlation", [0.0, 0.8])
def test_error_of_the_identity_covers_correlated_proposals(correlation):
    """One to three replicas, where no spread of replicas can help: error = sigma sqrt(g / n)."""
    rng = np.random.default_rng(0)
    sigma, n, repeats = 0.3, 2000, 200
    series = synthetic.autoregressive(rng, n * repeats, 1, correlation)[:, 0].reshape(repeats, n)
    delta_H = KT * (0.5 * sigma**2 + sigma * series)
    found = [exponential_identity([d[: n // 2], d[n // 2:]], KT) for d in delta_H]
    deviation = np.array([(f["mean"] - 1.0) / f["standard_error"] for f in found])
    assert abs(deviation.mean()) < 0.4
    assert deviation.std() == pytest.approx(1.0, abs=0.2)


def test_error_of_the_identity_sees_replicas_that_disagree():
    rng = np.random.default_rng(1)
    shifts = 0.4 * rng.standard_normal(8)
    found = exponential_identity([KT * (s + 0.05 * rng.standard_normal(500)) for s in shifts], KT)
    assert found["standard_error"] > 0.8 * np.exp(-shifts).std(ddof=1) / np.sqrt(8)
