"""What happened in a hybrid run: counts over its macro-steps, and the line that sums them up."""

from __future__ import annotations

import numpy as np

from kstep.runs.certificate import Certificate
from kstep.units import FS_PER_PS, SECONDS_PER_DAY


class Tally:
    """Counts over all production macro-steps; goes into the metadata and the restart file."""

    def __init__(self, saved: dict | None = None):
        if saved is None:
            self.start_over()
        else:
            self.counts, self.certificate = saved, Certificate(saved.get("certificate"))

    def start_over(self, **kept) -> None:
        """Forget all counts, as after a change of network; `kept` stays in the metadata."""
        self.counts = {"macro_steps": 0, "accepted": 0, "failed_true_calls": 0, "refused_jumps": 0,
                       "plain_steps": 0, "sum_exp": 0.0, "sum_exp_squared": 0.0, "attempts": {}, "swaps": {}, **kept}
        self.certificate = Certificate()

    def add(self, state, info, scheme, beta) -> None:
        """Count one macro-step of every replica; beta (R,) or one number, mol/kJ."""
        c = self.counts
        c["macro_steps"] += state.n_replicas
        c["accepted"] += int(info.accepted.sum())
        if scheme.name == "metropolis":
            weight = np.exp(np.minimum(-beta * info.delta_H, 700.0))
            c["sum_exp"] += float(weight.sum())
            c["sum_exp_squared"] += float((weight**2).sum())
            c["failed_true_calls"] += int(info.failures.sum())
            for rung in range(scheme.ladder.n_rungs - 1):
                asked = info.swapped[rung::scheme.ladder.n_rungs]
                offered, agreed = c["swaps"].get(str(rung), (0, 0))
                c["swaps"][str(rung)] = [offered + int((asked >= 0).sum()), agreed + int((asked == 1).sum())]
        elif scheme.name == "jump":
            c["refused_jumps"] += int(info.failures.sum())
            c["plain_steps"] += int((scheme.k_steps - info.inner_steps).sum())
        if len(state.network_energy):
            self.certificate.add(state)
            c["certificate"] = self.certificate.counts
        for attempts in info.attempts:
            c["attempts"][str(int(attempts))] = c["attempts"].get(str(int(attempts)), 0) + 1

    def summary(self, scheme_name: str) -> dict:
        """Fractions and means for the metadata."""
        c = self.counts
        out = {"tally": c}
        if "certificate" in c:
            out["certificate"] = self.certificate.figures()
        if scheme_name == "metropolis" and c["macro_steps"]:
            n = c["macro_steps"]
            mean = c["sum_exp"] / n
            out["acceptance"] = c["accepted"] / n
            out["mean_exp_minus_beta_dH"] = mean
            out["mean_exp_minus_beta_dH_error"] = float(
                np.sqrt(max(c["sum_exp_squared"] / n - mean**2, 0.0) / max(n - 1, 1)))
            if c["swaps"]:
                out["swap_acceptance"] = [agreed / offered if offered else None for offered, agreed in
                                          (c["swaps"][rung] for rung in sorted(c["swaps"], key=int))]
        return out

    def progress(self, ps: float, seconds: float, scheme_name: str) -> str:
        """Speed so far and how the proposals fare, for the progress bar."""
        c = self.counts
        text = f"{ps / max(seconds, 1e-9) * SECONDS_PER_DAY:.3g} ps/day"
        if scheme_name == "metropolis" and c["macro_steps"]:
            text += f", acceptance {c['accepted'] / c['macro_steps']:.2f}"
        if "certificate" in c:
            f = self.certificate.figures("recent")
            text += (f", E_true - E_ML spread {f['spread_kJ_per_mol']:.2g} kJ/mol, "
                     f"force error {f['force_rmse_kJ_per_mol_A']:.2g} kJ/mol/A")
        if scheme_name == "jump" and c["macro_steps"]:
            text += f", refused {c['refused_jumps']}"
        return text


def describe(metadata: dict) -> str:
    """One line about a finished run."""
    ps = metadata["tally"]["macro_steps"] * metadata["jump_fs"] / FS_PER_PS
    text = (f"{metadata['molecule']} {metadata['scheme']} k={metadata['k_steps']}: {ps:.1f} ps over "
            f"{metadata['replicas']} replicas, {metadata['true_calls']} true calls, "
            f"{ps / max(metadata['wall_production_s'], 1e-9) * SECONDS_PER_DAY:.3g} ps/day")
    if "acceptance" in metadata:
        text += (f", acceptance {metadata['acceptance']:.3f}, <exp(-beta dH)> = "
                 f"{metadata['mean_exp_minus_beta_dH']:.3f} +- {metadata['mean_exp_minus_beta_dH_error']:.3f}")
    if "certificate" in metadata:
        f = metadata["certificate"]
        text += (f", E_true - E_ML {f['mean_kJ_per_mol']:.3g} with spread {f['spread_kJ_per_mol']:.3g} kJ/mol, "
                 f"force error {f['force_rmse_kJ_per_mol_A']:.3g} kJ/mol/A")
    if metadata["status"] != "finished":
        text += f", {metadata['status']}"
    if metadata["scheme"] == "jump":
        text += f", {metadata['tally']['refused_jumps']} jumps refused, {metadata['tally']['plain_steps']} plain steps"
    return text
