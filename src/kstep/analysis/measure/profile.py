"""Everything a comparison needs to know of one trajectory: averages, histograms, effective sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kstep.analysis.measure import geometry
from kstep.analysis.measure.energy import element_temperatures, kinetic_energy_check
from kstep.analysis.measure.statistics import MeanEstimate, block_length, block_means, estimate_means, split_r_hat
from kstep.dihedrals import dihedrals_deg
from kstep.errors import UserError
from kstep.schemas import Trajectory

MOST_FRAMES = 200_000  # above, every n-th frame is read: geometry converges long before
CHUNK = 20_000

# lower, upper, bins and how many bins are merged for the Jensen-Shannon divergence
GRIDS = {
    "bonds": (0.5, 3.5, 1200, 4),  # Angstrom
    "angles": (0.0, 180.0, 720, 8),  # degrees
    "torsions": (-180.0, 180.0, 360, 5),  # degrees, circular
}


@dataclass
class Profile:
    """What was measured on the production frames of one trajectory; see `characterise`.

    means["bonds"|"angles"]: MeanEstimate of the pooled quantities, Angstrom and degrees;
    histograms[kind] (R,G,bins): counts per replica on the grid GRIDS[kind];
    shape_n_eff, bin_n_eff [kind] (G,): independent frames behind the large-scale form of a histogram
    (for Wasserstein-1) and behind its single bins, which decorrelate sooner (for Jensen-Shannon);
    potential, temperatures, rdf: MeanEstimates; torsion_series: one (T_r,D) array in degrees per replica;
    weights: (T_r,) of the frames of each replica, of mean 1 over all, None where all count alike.
    """

    trajectory: Trajectory
    coordinates: geometry.Coordinates
    temperature_K: float
    n_dof: int
    spacing_ps: float
    replicas: list[np.ndarray]
    means: dict[str, MeanEstimate]
    histograms: dict[str, np.ndarray]
    shape_n_eff: dict[str, np.ndarray]
    bin_n_eff: dict[str, np.ndarray]
    rdf: MeanEstimate
    rdf_maximum_nm: float
    potential: MeanEstimate
    temperatures: MeanEstimate
    elements: list[str]
    kinetic: dict | None
    torsion_series: list[np.ndarray]
    torsion_r_hat: np.ndarray
    weights: list[np.ndarray] | None = None

    @property
    def n_replicas(self) -> int:
        """How many replicas the judged frames come from."""
        return len(self.replicas)

    @property
    def n_frames(self) -> int:
        """Judged frames of all replicas."""
        return sum(len(r) for r in self.replicas)


def production_frames(trajectory: Trajectory, temperature_K: float | None = None) -> list[np.ndarray]:
    """Frames of roles train and reference at one temperature, in time order, one array per replica."""
    wanted = [
        i for i, s in enumerate(trajectory.segments)
        if s["role"] in ("train", "reference")
        and (temperature_K is None or abs(s["temperature_K"] - temperature_K) < 0.5)
    ]
    frames = np.flatnonzero(np.isin(trajectory.segment, wanted))
    out = []
    for replica in np.unique(trajectory.replica[frames]):
        mine = frames[trajectory.replica[frames] == replica]
        out.append(mine[np.argsort(trajectory.step[mine], kind="stable")])
    return [f for f in out if len(f) >= 4]


def production_temperature_K(trajectory: Trajectory) -> float | None:
    """Temperature of the production segments; None if the file holds no production."""
    used = np.unique(trajectory.segment)
    found = {trajectory.segments[i]["temperature_K"] for i in used
             if trajectory.segments[i]["role"] in ("train", "reference")}
    if len(found) > 1:
        raise UserError(f"production frames at several temperatures ({sorted(found)} K) in one file "
                        "cannot be averaged; give warmer stretches the role 'hot'")
    return float(found.pop()) if found else None


def characterise(trajectory: Trajectory, *, temperature_K: float | None = None, rdf_maximum_nm: float = 1.0,
                 rdf_bins: int = 200) -> Profile | None:
    """Measure the production frames of a trajectory; None if it has none.

    Distances come in Angstrom, angles in degrees, energies in kJ/mol.  Frames beyond 200 000 are
    thinned evenly.  Weights of frames are those of positions; velocities are drawn without a look at them.
    """
    if temperature_K is None:
        temperature_K = production_temperature_K(trajectory)
    if temperature_K is None:
        return None
    replicas = production_frames(trajectory, temperature_K)
    if not replicas:
        return None
    stride = -(-sum(len(r) for r in replicas) // MOST_FRAMES)
    replicas = [r[::stride] for r in replicas]
    replicas = [r for r in replicas if len(r) >= 4]
    weights = weights_of(trajectory, replicas)
    gaps = np.concatenate([np.diff(trajectory.time_ps[r]) for r in replicas])
    spacing = float(np.median(gaps[gaps > 0])) if (gaps > 0).any() else 0.0
    n_dof = trajectory.segments[trajectory.segment[replicas[0][0]]]["n_dof"]
    found = geometry.find_coordinates(trajectory.atom_types, trajectory.bonds, masses=trajectory.masses)

    series, histograms, rdf_blocks = {kind: [] for kind in GRIDS}, {kind: [] for kind in GRIDS}, []
    per_block = min(block_length(spacing), min(len(r) for r in replicas) // 4)
    chunk = CHUNK // per_block * per_block or per_block
    block_weights: list[np.ndarray] | None = None if weights is None else []
    for r, frames in enumerate(replicas):
        own = None if weights is None else weights[r]
        counts: dict[str, Any] = dict.fromkeys(GRIDS, 0.0)
        parts, rdf_parts = {kind: [] for kind in GRIDS}, []
        for start in range(0, len(frames), chunk):
            pos = trajectory.pos[frames[start: start + chunk]]
            here = None if own is None else own[start: start + chunk]
            values = {"bonds": 10.0 * geometry.bond_lengths_nm(pos, found.atoms["bonds"]),
                      "angles": geometry.angles_deg(pos, found.atoms["angles"]),
                      "torsions": dihedrals_deg(pos, found.atoms["torsions"])}
            for kind, value in values.items():
                lower, upper, bins, _ = GRIDS[kind]
                group, size = found.group[kind], len(found.labels[kind])
                counts[kind] = counts[kind] + geometry.grouped_histograms(value, group, size, lower, upper, bins,
                                                                              here)
                parts[kind].append(value if kind == "torsions" else geometry.pool(value, group, size))
            if len(pos) >= per_block:
                rdf_parts.append(geometry.pair_distance_histogram(pos, rdf_maximum_nm, rdf_bins, per_block, here))
        for kind in series:
            series[kind].append(np.concatenate(parts[kind]))
            histograms[kind].append(counts[kind])
        rdf_blocks.append(np.concatenate(rdf_parts))
        if block_weights is not None:
            block_weights.append(block_means(own, per_block))

    means = {kind: estimate_means(series[kind], spacing, weights) for kind in ("bonds", "angles")}
    shape_n_eff = {}
    for kind in ("bonds", "angles"):
        squares = estimate_means([(x - means[kind].mean) ** 2 for x in series[kind]], spacing, weights)
        # an average over oscillations converges sooner than the distribution it oscillates in
        shape_n_eff[kind] = np.minimum(means[kind].n_eff, squares.n_eff)
    torsions = series["torsions"]
    circle = [geometry.on_circle(x) for x in torsions]
    shape_n_eff["torsions"] = estimate_means(circle, spacing, weights).n_eff.reshape(2, -1).min(axis=0)
    bin_n_eff = {kind: _bin_n_eff(series[kind], spacing, weights) for kind in series}
    rdf_blocks = [b / np.maximum(b.sum(axis=1, keepdims=True), 1.0 if weights is None else 1e-300) for b in rdf_blocks]
    elements, temperatures = element_temperatures(trajectory, replicas, n_dof, spacing)
    kinetic = [trajectory.Ekin[r] for r in replicas]
    kinetic_interval = float(estimate_means([k[:, None] for k in kinetic], spacing).interval[0])
    return Profile(
        trajectory=trajectory, coordinates=found, temperature_K=temperature_K, n_dof=n_dof,
        spacing_ps=spacing, replicas=replicas, means=means,
        histograms={kind: np.array(h) for kind, h in histograms.items()}, shape_n_eff=shape_n_eff, bin_n_eff=bin_n_eff,
        rdf=estimate_means(rdf_blocks, spacing * per_block, block_weights), rdf_maximum_nm=rdf_maximum_nm,
        potential=estimate_means([trajectory.Epot[r][:, None] for r in replicas], spacing, weights),
        temperatures=temperatures, elements=elements,
        kinetic=kinetic_energy_check(kinetic, kinetic_interval, n_dof, temperature_K,
                                     len(trajectory.atom_types)),
        torsion_series=torsions,
        torsion_r_hat=split_r_hat(circle, weights).reshape(2, -1).max(axis=0) if circle[0].shape[1] else np.zeros(0),
        weights=weights,
    )


def weights_of(trajectory: Trajectory, replicas: list[np.ndarray]) -> list[np.ndarray] | None:
    """Weights (T_r,) of the frames (T_r,) of each replica, of mean 1 over all; None where all count alike."""
    if not trajectory.is_weighted:
        return None
    ends = np.cumsum([len(r) for r in replicas])
    return np.split(trajectory.weights_of(np.concatenate(replicas)), ends[:-1])


def _bin_n_eff(series: list[np.ndarray], spacing_ps: float, weights: list[np.ndarray] | None = None,
               bins: int = 16) -> np.ndarray:
    """Independent frames (G,) behind the bins of each column's histogram, from equally filled bins.

    n_eff = sum_b p_b (1 - p_b) / sum_b s_b^2, with s_b the standard error of the population of bin b.
    """
    length = min(block_length(spacing_ps), min(len(x) for x in series) // 4)
    out = np.ones(series[0].shape[1])
    block_weights = None if weights is None else [block_means(w, length) for w in weights]
    for column in range(len(out)):
        values = [x[:, column] for x in series]
        edges = np.quantile(np.concatenate([v[:: max(1, len(v) // 2000)] for v in values]),
                            np.arange(1, bins) / bins)
        tables = []
        for r, v in enumerate(values):
            count = len(v) // length
            block = np.repeat(np.arange(count), length)
            index = np.searchsorted(edges, v[: count * length]) + bins * block
            own = None if weights is None else weights[r][: count * length]
            table = np.bincount(index, weights=own, minlength=bins * count).reshape(count, bins)
            tables.append(table / (length if own is None else np.maximum(table.sum(axis=1, keepdims=True), 1e-300)))
        found = estimate_means(tables, spacing_ps * length, block_weights)
        spread = (found.mean * (1.0 - found.mean)).sum()
        error = found.mean_variance.sum()
        out[column] = spread / error if error > 0 else sum(len(v) for v in values)
    return out
