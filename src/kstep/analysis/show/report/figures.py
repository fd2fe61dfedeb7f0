"""The figures of a report, as plotly's JSON; colours of text and paper are the page's own."""

from __future__ import annotations

from typing import Any

import numpy as np

from kstep.analysis.measure.statistics import estimate_means
from kstep.units import kT

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#888888"
FEW, BINS = 3000, (36, 72)  # below so many frames wide bins
POINTS = 80  # of a running average
MARGIN = {"l": 56, "r": 12, "t": 30, "b": 44}


def _figure(traces: list[dict], x: str, y: str, **layout: Any) -> dict[str, Any]:
    """Checked by plotly's own classes: a misspelt key fails here."""
    import plotly.graph_objects as go

    found = go.Figure(traces, {"template": "none", "margin": MARGIN, "xaxis": {"title": {"text": x}},
                               "yaxis": {"title": {"text": y}}, "hovermode": "closest", **layout})
    return found.to_plotly_json()


def density(series: list[np.ndarray], spacing_ps: float,
            weights: list[np.ndarray] | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centres (G,) in degrees, share of the frames per degree and its standard error, of angles (T_r,) of each chain.

    The errors are those of means of bins over chains (statistics.estimate_means), with memory and weights.
    """
    n = BINS[sum(map(len, series)) >= FEW]
    edges = np.linspace(-180.0, 180.0, n + 1)
    width = edges[1] - edges[0]
    inside = [np.eye(n)[np.clip(((a + 180.0) / width).astype(int), 0, n - 1)] for a in series]
    found = estimate_means(inside, spacing_ps, weights)
    error = found.standard_error
    if len(series) >= 4:
        error = np.maximum(error, found.replica_means.std(axis=0, ddof=1) / np.sqrt(len(series)))
    return 0.5 * (edges[1:] + edges[:-1]), found.mean / width, error / width


def torsion(series: list[np.ndarray], spacing_ps: float, weights: list[np.ndarray] | None, temperature_K: float,
            baseline: tuple[list[np.ndarray], float] | None = None) -> dict[str, Any]:
    """Population along a torsion with its error band, and -kT ln of it by a button; baseline: plain MD's beside it."""
    x, p, error = density(series, spacing_ps, weights)
    energy = kT(temperature_K)
    seen = p > 0
    F = np.where(seen, -energy * np.log(np.where(seen, p, 1.0) / p.max()), np.nan)
    F_error = np.where(seen, energy * error / np.where(seen, p, 1.0), np.nan)
    traces = [*_band(x, 100 * p, 100 * error, "%/deg", True), *_band(x, F, F_error, "kJ/mol", False)]
    of_run = len(traces) // 2
    if baseline:
        _, q, _ = density(*baseline, None)
        there = q > 0
        for values, unit, shown in ((100 * q, "%/deg", True),
                                    (np.where(there, -energy * np.log(np.where(there, q, 1.0) / q.max()), np.nan),
                                     "kJ/mol", False)):
            traces.append({"type": "scatter", "x": _numbers(x), "y": _numbers(values), "name": "plain MD",
                           "line": {"color": ORANGE, "dash": "dot"}, "visible": shown,
                           "hovertemplate": f"%{{x:.0f}} deg: %{{y:.2f}} {unit}"})
    first = [True] * of_run + [False] * of_run + ([True, False] if baseline else [])
    buttons = [{"label": label, "method": "update", "args": [{"visible": shown}, {"yaxis.title.text": y}]}
               for label, shown, y in (("population", first, "% per degree"),
                                       ("free energy", [not s for s in first], "kJ/mol"))]
    return _figure(traces, "degrees", "% per degree", showlegend=bool(baseline), legend={"orientation": "h", "y": 1.12},
                   xaxis={"title": {"text": "degrees"}, "range": [-180, 180], "dtick": 60},
                   updatemenus=[{"type": "buttons", "direction": "right", "x": 1.0, "xanchor": "right", "y": 1.18,
                                 "showactive": True, "buttons": buttons}])


def _band(x: np.ndarray, y: np.ndarray, error: np.ndarray, unit: str, shown: bool) -> list[dict]:
    """A line with one standard error shaded."""
    edge = {"type": "scatter", "x": _numbers(x), "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip",
            "showlegend": False, "visible": shown}
    return [{**edge, "y": _numbers(y - error)},
            {**edge, "y": _numbers(y + error), "fill": "tonexty", "fillcolor": "rgba(0,114,178,0.25)"},
            {"type": "scatter", "x": _numbers(x), "y": _numbers(y), "name": "this run", "line": {"color": BLUE},
             "mode": "lines", "customdata": _numbers(error), "visible": shown,
             "hovertemplate": f"%{{x:.0f}} deg: %{{y:.2f}} +- %{{customdata:.2f}} {unit}<extra></extra>"}]


def running(chains: list[np.ndarray], weights: list[np.ndarray], labels: list[str],
            populations: list[tuple[float, float]]) -> dict[str, Any]:
    """The population of a conformer so far in each chain, one conformer at a time.

    chains: (T_r,) index of the conformer of each frame, in time order; populations: value and error of each of them.
    """
    traces, n = [], len(chains)
    longest = max(map(len, chains))
    for c, _ in enumerate(labels):
        value, error = populations[c]
        for r, (chain, weight) in enumerate(zip(chains, weights)):
            total = np.cumsum(weight)
            so_far = np.divide(np.cumsum(weight * (chain == c)), total, out=np.zeros(len(chain)), where=total > 0)
            at = np.unique(np.linspace(0, len(chain) - 1, POINTS).astype(int))
            traces.append({"type": "scatter", "mode": "lines", "x": (at + 1).tolist(), "y": _numbers(so_far[at]),
                           "line": {"width": 1, "color": GREY}, "opacity": 0.7, "visible": c == 0,
                           "hovertemplate": f"chain {r}: %{{y:.3f}}<extra></extra>", "showlegend": False})
        for y, width in ((value, 2), (value - error, 1), (value + error, 1)):
            traces.append({"type": "scatter", "mode": "lines", "x": [1, longest], "y": [y, y], "showlegend": False,
                           "line": {"color": BLUE, "width": width, "dash": "solid" if width == 2 else "dot"},
                           "visible": c == 0, "hoverinfo": "skip"})
    each = n + 3
    buttons = [{"label": label, "method": "update",
                "args": [{"visible": [t // each == c for t in range(len(traces))]}]} for c, label in enumerate(labels)]
    return _figure(traces, "frames of the chain", "population so far", yaxis={"title": {"text": "population so far"},
                                                                               "range": [0, 1]},
                   updatemenus=[{"type": "dropdown", "x": 1.0, "xanchor": "right", "y": 1.16, "buttons": buttons}]
                   if len(labels) > 1 else [])


def _numbers(values: np.ndarray) -> list[float | None]:
    """Plain numbers of five digits; a gap where there is none."""
    return [float(f"{v:.5g}") if np.isfinite(v) else None for v in values]
