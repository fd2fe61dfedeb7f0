"""The figures of a report, as plotly's JSON; colours of text and paper are the page's own."""

from __future__ import annotations

from typing import Any

import numpy as np

from kstep.analysis.measure.free_energy import FreeEnergy
from kstep.analysis.measure.infrared import Spectrum
from kstep.units import kT

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#888888"
POINTS = 80  # of a running average
# a pressed button has plotly's own light ground, on which light text could not be read
MENU = {"bgcolor": "#eef2f5", "bordercolor": "#b8c4ce", "font": {"color": "#1c1c1c"}}
MARGIN = {"l": 56, "r": 12, "t": 30, "b": 44}


def _figure(traces: list[dict], x: str, y: str, **layout: Any) -> dict[str, Any]:
    """Checked by plotly's own classes: a misspelt key fails here."""
    import plotly.graph_objects as go

    found = go.Figure(traces, {"template": "none", "margin": MARGIN, "xaxis": {"title": {"text": x}},
                               "yaxis": {"title": {"text": y}}, "hovermode": "closest", **layout})
    return found.to_plotly_json()


def torsion(found: FreeEnergy, baseline: FreeEnergy | None = None) -> dict[str, Any]:
    """Population along a torsion with its error band, the free energy by a button; baseline: plain MD's beside it."""
    (x,), energy = found.centres, kT(found.temperature_K)
    p, F, F_error = found.density, found.free_energy, found.error
    p_error = None if F_error is None else np.where(p > 0, p * np.where(p > 0, F_error, 0.0) / energy, 0.0)
    percent = [*_band(x, 100 * p, None if p_error is None else 100 * p_error, "%/deg", True)]
    heights = [*_band(x, F, F_error, "kJ/mol", False)]
    if baseline is not None:
        percent.append(_beside(baseline.centres[0], 100 * baseline.density, "%/deg", True))
        heights.append(_beside(baseline.centres[0], baseline.free_energy, "kJ/mol", False))
    buttons = [{"label": label, "method": "update",
                "args": [{"visible": [shown] * len(percent) + [not shown] * len(heights)}, {"yaxis.title.text": y}]}
               for label, shown, y in (("population", True, "% per degree"), ("free energy", False, "kJ/mol"))]
    return _figure([*percent, *heights], "degrees", "% per degree", showlegend=baseline is not None,
                   legend={"orientation": "h", "y": 1.12},
                   xaxis={"title": {"text": "degrees"}, "range": [-180, 180], "dtick": 60},
                   updatemenus=[{"type": "buttons", "direction": "right", "x": 1.0, "xanchor": "right", "y": 1.18,
                                 "buttons": buttons, **MENU}])


def _beside(x: np.ndarray, y: np.ndarray, unit: str, shown: bool) -> dict:
    return {"type": "scatter", "mode": "lines", "x": _numbers(x), "y": _numbers(y), "name": "plain MD",
            "line": {"color": ORANGE, "dash": "dot"}, "visible": shown,
            "hovertemplate": f"%{{x:.0f}}: %{{y:.3g}} {unit}"}


def _band(x: np.ndarray, y: np.ndarray, error: np.ndarray | None, unit: str, shown: bool) -> list[dict]:
    """A line, with one standard error shaded where it is known."""
    line = {"type": "scatter", "x": _numbers(x), "y": _numbers(y), "name": "this run", "line": {"color": BLUE},
            "mode": "lines", "visible": shown, "hovertemplate": f"%{{x:.0f}}: %{{y:.3g}} {unit}<extra></extra>"}
    if error is None:
        return [line]
    edge = {"type": "scatter", "x": _numbers(x), "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip",
            "showlegend": False, "visible": shown}
    known = np.isfinite(y) & np.isfinite(error)
    y, error = np.where(known, y, np.nan), np.where(known, error, np.nan)
    return [{**edge, "y": _numbers(y - error)},
            {**edge, "y": _numbers(y + error), "fill": "tonexty", "fillcolor": "rgba(0,114,178,0.25)"},
            {**line, "customdata": _numbers(error),
             "hovertemplate": f"%{{x:.0f}}: %{{y:.3g}} +- %{{customdata:.2g}} {unit}<extra></extra>"}]


def spectrum(found: Spectrum) -> dict[str, Any]:
    """Absorption, or the power spectrum without dipoles, with its error band; plain MD's beside it, if there is one."""
    x, (y, error) = found.wavenumber_cm, found.curve
    unit = "km/mol per cm-1" if found.absorption is not None else "share per cm-1"
    traces = _band(x, y, error if np.isfinite(error).all() else None, unit, True)
    if found.baseline is not None:
        traces.append(_beside(x, found.baseline.curve[0], unit, True))
    return _figure(traces, "cm-1", unit, showlegend=found.baseline is not None, legend={"orientation": "h", "y": 1.12})


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
    menu = {"type": "dropdown", "x": 1.0, "xanchor": "right", "y": 1.16, **MENU}
    buttons = [{"label": label, "method": "update",
                "args": [{"visible": [t // each == c for t in range(len(traces))]}]} for c, label in enumerate(labels)]
    return _figure(traces, "frames of the chain", "population so far",
                   yaxis={"title": {"text": "population so far"}, "range": [0, 1]},
                   updatemenus=[{**menu, "buttons": buttons}] if len(labels) > 1 else [])


def _numbers(values: np.ndarray) -> list[float | None]:
    """Plain numbers of five digits; a gap where there is none."""
    return [float(f"{v:.5g}") if np.isfinite(v) else None for v in values]
