"""Whether two exact samplers found the same: rotamers, energy, bonds and angles, by the spread of independent chains.

Every chain is one draw of a vector of its time averages, so its errors need no autocorrelation time.  The difference
of the means of two samplers a and b, in the directions in which such differences spread most, is put together as

    T^2 = d^T V^-1 d,   V = S_a/n_a + S_b/n_b,

S the covariance of chains: a chi-square with an estimated covariance, so that p is that of an F distribution, with the
degrees of freedom of Krishnamoorthy & Yu, Stat. Probab. Lett. 66, 161 (2004).  Beside p stands the smallest deviation
that would have been seen: agreement of two blurred figures says nothing.
"""

from __future__ import annotations

import numpy as np
from scipy.special import fdtrc, ndtri

from kstep.analysis.measure.profile import Profile
from kstep.analysis.measure.samples import Rotamers
from kstep.dihedrals import wrap_deg

FEWEST_CHAINS = 8  # of each sampler
CHAINS_PER_DIRECTION = 4  # at least, so that the covariance of the directions is known
SEEN = float(ndtri(0.975) + ndtri(0.8))  # errors that are found at the 5 % level four times in five
SAME = 1e-9  # relative: rounding, no spread


def chain_means(profiles: list[Profile], rotamers: list[Rotamers | None]) -> dict[str, np.ndarray]:
    """Time averages of every chain: populations (R,W) of all wells, energy (R,1) kJ/mol, bonds (R,B) A, angles (R,A)
    degrees; the chains of all `profiles` (of one sampler) one below the other.
    """
    wells = [(column, found) for column, found in enumerate(rotamers) if found is not None]

    def populations(profile: Profile) -> np.ndarray:
        weights = profile.weights or [np.ones(len(series)) for series in profile.torsion_series]
        shares = [[_shares(series[:, column], weight, found.centres_deg) for column, found in wells]
                  for series, weight in zip(profile.torsion_series, weights)]
        return np.array([np.concatenate(of_chain) if of_chain else np.zeros(0) for of_chain in shares])

    return {"populations": np.concatenate([populations(p) for p in profiles]),
            "energy": np.concatenate([p.potential.replica_means for p in profiles]),
            **{kind: np.concatenate([p.means[kind].replica_means for p in profiles]) for kind in ("bonds", "angles")}}


def _shares(angle_deg: np.ndarray, weight: np.ndarray, centres_deg: np.ndarray) -> np.ndarray:
    """Share (W,) of the weight (T,) of frames that are nearest to each centre."""
    nearest = np.abs(wrap_deg(angle_deg[:, None] - centres_deg)).argmin(axis=1)
    return np.bincount(nearest, weight, minlength=len(centres_deg)) / weight.sum()


def same_mean(a: np.ndarray, b: np.ndarray) -> dict | None:
    """Whether chains (n_a,P) and (n_b,P) have one mean: {"p", "directions", "observables"}; None for too few chains."""
    fewest = min(len(a), len(b))
    if fewest < FEWEST_CHAINS or not a.shape[1]:
        return None
    of_a, of_b = (np.cov(x, rowvar=False).reshape(x.shape[1], -1) / len(x) for x in (a, b))
    difference, variance = a.mean(axis=0) - b.mean(axis=0), np.diag(of_a + of_b)
    scale = SAME * np.maximum(1e-3, np.maximum(np.abs(a).max(axis=0), np.abs(b).max(axis=0)))
    varies = np.sqrt(variance) > scale
    out = {"directions": 0, "observables": int(a.shape[1])}
    if (np.abs(difference) > scale)[~varies].any():
        return {**out, "p": 0.0}  # no chain of either ever shows what the other does
    if not varies.any():
        return {**out, "p": 1.0}
    error = np.sqrt(variance[varies])
    of_a, of_b = (each[np.ix_(varies, varies)] / np.outer(error, error) for each in (of_a, of_b))
    weight, direction = np.linalg.eigh(of_a + of_b)
    n = int(min((weight > 1e-8 * weight[-1]).sum(), max(1, fewest // CHAINS_PER_DIRECTION)))
    to_unit = direction[:, -n:] / np.sqrt(weight[-n:])
    t_squared = float((((difference[varies] / error) @ to_unit) ** 2).sum())
    spread = sum(((part @ part).trace() + part.trace() ** 2) / (chains - 1)
                 for each, chains in ((of_a, len(a)), (of_b, len(b))) for part in (to_unit.T @ each @ to_unit,))
    freedom = (n + n**2) / spread
    last = freedom - n + 1.0
    return {**out, "directions": n, "p": float(fdtrc(n, last, t_squared * last / (freedom * n)))}


def agreement(a: list[Profile], b: list[Profile], rotamers: list[Rotamers | None]) -> dict:
    """Two samplers beside each other.

    {"chains": [n_a, n_b], "p": of everything together, "tests": {what: see `same_mean`}, "populations": a row per well,
    "largest" and "seen": by what, the largest difference, and the smallest one that would have been seen}.
    """
    one, other = chain_means(a, rotamers), chain_means(b, rotamers)
    tests = {kind: same_mean(one[kind], other[kind]) for kind in one}
    together = same_mean(*(np.concatenate(list(each.values()), axis=1) for each in (one, other)))
    difference = {kind: one[kind].mean(axis=0) - other[kind].mean(axis=0) for kind in one}
    error = {kind: np.sqrt(sum(x.var(axis=0, ddof=1) / len(x) for x in (one[kind], other[kind]))) for kind in one}
    named = [(found.label, float(centre)) for found in rotamers if found is not None for centre in found.centres_deg]
    wells = zip(named, one["populations"].mean(axis=0), other["populations"].mean(axis=0), error["populations"],
                strict=True)
    return {"chains": [len(one["energy"]), len(other["energy"])], "p": together and together["p"],
            "tests": {**tests, "together": together},
            "populations": [{"torsion": label, "well_deg": well, "shares": [float(mine), float(theirs)],
                             "standard_error": float(of_difference)}
                            for (label, well), mine, theirs, of_difference in wells],
            "largest": {kind: float(np.abs(d).max()) for kind, d in difference.items() if d.size},
            "seen": {kind: float(SEEN * e.max()) for kind, e in error.items() if e.size}}


def sentence(name: str, rival: str, found: dict) -> str:
    """What agrees, and how closely that was looked at."""
    if found["p"] is None:
        return f"{name} and {rival}: too few chains to compare ({' and '.join(map(str, found['chains']))})"
    units = {"populations": "", "energy": " kJ/mol", "bonds": " A", "angles": " degrees"}
    each = "; ".join(f"{kind} p = {found['tests'][kind]['p']:.2g}, apart by at most {found['largest'][kind]:.2g}{unit} "
                     f"where {found['seen'][kind]:.2g} would have been seen" for kind, unit in units.items()
                     if found["tests"][kind])
    mine, theirs = found["chains"]
    return f"{name} and {rival} agree with p = {found['p']:.2g} ({mine} and {theirs} chains): {each}"
