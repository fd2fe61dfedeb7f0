"""The pictures of one comparison; each function draws one PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from kstep.analysis.measure import spectra
from kstep.analysis.measure.energy import drift_windows
from kstep.analysis.measure.profile import GRIDS, Profile
from kstep.units import kT

REFERENCE, RUN, CONTROL = "#4d4d4d", "#0072b2", "#d55e00"
PANELS = 12  # most distributions in one picture
STYLE: Any = {"figure.dpi": 110, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
         "axes.titlesize": 9, "legend.frameon": False, "savefig.bbox": "tight"}


def draw_all(folder: Path, reference: Profile, run: Profile | None, trajectory, result: dict,
             controls: dict[str, Profile]) -> dict[str, Path]:
    """Draw every picture that this run has data for; returns {name: path}."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn: dict[str, Path] = {}

    def save(name, figure):
        if figure is not None:
            drawn[name] = folder / f"{name}.png"
            figure.savefig(drawn[name])
            plt.close(figure)

    with plt.rc_context(STYLE):
        if run is not None:
            save("energy", draw_energy(reference, run))
            save("rdf", draw_rdf(reference, run, controls))
            for kind in ("bonds", "angles", "torsions"):
                save(kind, draw_distributions(kind, reference, run, controls))
            save("temperature", draw_temperature(reference, run, controls))
        if "exp_minus_beta_dH" in (result["proposals"] or {}):
            save("proposals", draw_proposals(trajectory, run))
        elif result["drift"]:
            save("drift", draw_drift(trajectory, result["drift"]))
        if result["stretches"]:
            save("spectrum", draw_spectrum(reference, trajectory, result))
    return drawn


def draw_energy(reference: Profile, run: Profile):
    """Potential energy against frame, and its distribution."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.8), width_ratios=(2, 1), layout="constrained")
    zero = reference.potential.mean[0]
    samples, shares = [], []
    for profile, colour, name in ((reference, REFERENCE, "reference"), (run, RUN, "this run")):
        values = np.concatenate([profile.trajectory.Epot[r] for r in profile.replicas]) - zero
        samples.append(values)
        shares.append(None if profile.weights is None else np.concatenate(profile.weights))
        stride = max(1, len(values) // 2000)
        left.plot(np.linspace(0, 1, len(values[::stride])), values[::stride], color=colour, lw=0.5, alpha=0.8,
                  label=name)
    edges = np.histogram_bin_edges(np.concatenate(samples), bins=50)
    right.hist(samples[0], edges, density=True, weights=shares[0], color=REFERENCE, alpha=0.35,
               orientation="horizontal")
    right.hist(samples[1], edges, density=True, weights=shares[1], color=RUN, histtype="step", lw=1.5,
               orientation="horizontal")
    left.set(xlabel="part of the run (replicas one after another)",
             ylabel="potential energy - reference mean (kJ/mol)")
    right.set(xlabel="density (mol/kJ)", yticklabels=[])
    right.sharey(left)
    left.legend(loc="upper right", ncols=2)
    return figure


def draw_rdf(reference: Profile, run: Profile, controls):
    """Intramolecular pair-distance histogram, and its difference from the reference."""
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(8, 4.2), height_ratios=(2, 1), sharex=True,
                                         layout="constrained")
    bins = len(reference.rdf.mean)
    r = 10.0 * reference.rdf_maximum_nm * (np.arange(bins) + 0.5) / bins
    width = r[1] - r[0]
    top.fill_between(r, reference.rdf.mean / width, color=REFERENCE, alpha=0.35, lw=0, label="reference")
    error = 2.0 * np.sqrt(reference.rdf.mean_variance + run.rdf.mean_variance) / width
    bottom.fill_between(r, -error, error, color=REFERENCE, alpha=0.25, lw=0, label="2 standard errors")
    for name, control in controls.items():
        bottom.plot(r, (control.rdf.mean - reference.rdf.mean) / width, color=CONTROL, lw=0.8, label=name)
    top.plot(r, run.rdf.mean / width, color=RUN, lw=1.0, label="this run")
    bottom.plot(r, (run.rdf.mean - reference.rdf.mean) / width, color=RUN, lw=1.0, label="this run")
    last = np.flatnonzero(reference.rdf.mean + run.rdf.mean).max(initial=0)
    top.set(ylabel="density (1/A)", xlim=(0.5, min(r[last] + 0.3, r[-1])), ylim=(0, None))
    bottom.set(xlabel="atom-atom distance (A)", ylabel="run - reference")
    top.legend()
    bottom.legend(ncols=3, fontsize=8)
    return figure


def draw_distributions(kind: str, reference: Profile, run: Profile, controls):
    """One small panel per bond, angle or torsion: reference filled, this run and control as lines."""
    labels = reference.coordinates.labels[kind]
    if not labels:
        return None
    lower, upper, bins, _ = GRIDS[kind]
    merged = 4  # smoother to look at than the grid on which distances are computed
    grid = lower + (upper - lower) / bins * merged * (np.arange(bins // merged) + 0.5)

    def curves(profile):
        counts = profile.histograms[kind].sum(axis=0).reshape(len(labels), -1, merged).sum(axis=-1)
        return counts / counts.sum(axis=1, keepdims=True) / (grid[1] - grid[0])

    base, own = curves(reference), curves(run)
    # the panels that differ most come first when there are too many
    shown = np.sort(np.argsort(-np.abs(base - own).sum(axis=1))[:PANELS])
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    width = 8.0 if columns > 2 else 4.0 * columns
    figure, axes = plt.subplots(rows, columns, figsize=(width, 1.8 * rows + 0.5), squeeze=False,
                                layout="constrained")
    for axis in axes.flat[len(shown):]:
        axis.set_visible(False)
    for axis, g in zip(axes.flat, shown):
        axis.fill_between(grid, base[g], color=REFERENCE, alpha=0.35, lw=0, label="reference")
        for name, control in controls.items():
            axis.plot(grid, curves(control)[g], color=CONTROL, lw=0.8, label=name)
        axis.plot(grid, own[g], color=RUN, lw=1.2, label="this run")
        axis.set(title=labels[g], yticks=[])
        if kind == "torsions":
            axis.set(xlim=(-180, 180), xticks=[-180, -60, 60, 180])
        else:
            seen = grid[(base[g] + own[g]) > 0.002 * base[g].max()]
            axis.set_xlim(seen.min(), seen.max())
    unit = "A" if kind == "bonds" else "deg"
    figure.supxlabel(f"{kind[:-1]} ({unit})", fontsize=9)
    handles, names = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=3)
    return figure


def draw_temperature(reference: Profile, run: Profile, controls):
    """Temperature of each element with two standard errors."""
    figure, axis = plt.subplots(figsize=(6, 2.8), layout="constrained")
    entries = [("reference", reference, REFERENCE), ("this run", run, RUN)]
    entries += [(name, control, CONTROL) for name, control in controls.items()]
    for n, (name, profile, colour) in enumerate(entries):
        place = np.arange(len(profile.elements)) + 0.15 * (n - (len(entries) - 1) / 2)
        axis.errorbar(place, profile.temperatures.mean, 2.0 * profile.temperatures.standard_error, fmt="o",
                      ms=4, color=colour, label=name, capsize=2)
    axis.axhline(reference.temperature_K, color="black", lw=0.8, ls=":", label="target")
    axis.set_xticks(range(len(reference.elements)), reference.elements)
    axis.set(ylabel="temperature (K)", xlim=(-0.6, len(reference.elements) - 0.4))
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def draw_proposals(trajectory, run: Profile | None):
    """Energy error of the proposals, and acceptance along the run."""
    frames = np.concatenate(run.replicas) if run else np.arange(len(trajectory.delta_H))
    frames = frames[np.isfinite(trajectory.delta_H[frames])]
    delta = trajectory.delta_H[frames] / kT(run.temperature_K if run else trajectory.metadata["temperature_K"])
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
    lower, upper = np.percentile(delta, [0.2, 99.5])
    span = max(upper - lower, 1e-3)
    left.hist(np.clip(delta, lower - 0.1 * span, upper + 0.1 * span), bins=60, color=RUN, alpha=0.7)
    left.axvline(0.0, color="black", lw=0.8)
    left.set(xlabel="energy error of a proposal (kT; the end bins hold the tails)", ylabel="proposals", yticks=[])
    if len(trajectory.accepted):
        order = np.argsort(trajectory.step[frames], kind="stable")
        parts = np.array_split(trajectory.accepted[frames][order].astype(float), min(25, len(frames)))
        rate = np.array([p.mean() for p in parts])
        error = np.array([np.sqrt(max(p.var(), 1e-9) / len(p)) for p in parts])
        right.errorbar(np.linspace(0, 1, len(parts)), rate, error, fmt="o-", ms=3, lw=0.8, color=RUN)
        right.set(xlabel="part of the run", ylabel="acceptance", ylim=(0, 1.02))
    return figure


def draw_drift(trajectory, drift: dict):
    """True total energy in the NVE windows, from each window's start."""
    figure, axis = plt.subplots(figsize=(8, 2.8), layout="constrained")
    for _, frames in drift_windows(trajectory):
        if len(frames) < 2:
            continue
        frames = frames[:: max(1, len(frames) // 1000)]
        energy = trajectory.Etot[frames]
        axis.plot(trajectory.time_ps[frames] - trajectory.time_ps[frames[0]], energy - energy[0], lw=0.7,
                  color=RUN, alpha=0.7)
    if drift["blown_up_segments"]:
        axis.set_yscale("symlog", linthresh=1.0)
    axis.axhline(0.0, color="black", lw=0.8, ls=":")
    axis.set(xlabel="time in NVE (ps)", ylabel="total energy - start (kJ/mol)")
    return figure


def draw_spectrum(reference: Profile, trajectory, result: dict):
    """Vibrational spectra from NVE windows of the same length."""
    window = next(iter(result["stretches"].values()))["window_ps"]
    figure, axis = plt.subplots(figsize=(8, 2.8), layout="constrained")
    base = spectra.spectrum(reference.trajectory, window, reference.temperature_K)
    own = spectra.spectrum(trajectory, window)
    axis.fill_between(spectra.GRID_CM, base["density"], color=REFERENCE, alpha=0.35, lw=0, label="reference")
    axis.plot(spectra.GRID_CM, own["density"], color=RUN, lw=1.0, label="this run")
    axis.set(xlabel="wavenumber (cm$^{-1}$)", ylabel="power (normalised)", yticks=[], xlim=(0, 4200), ylim=(0, None))
    axis.legend()
    return figure
