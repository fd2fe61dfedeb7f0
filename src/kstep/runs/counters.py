"""What happened in a run: sums over its macro-steps, and the line that says how it went."""

from __future__ import annotations

from typing import Any

from kstep.runs import aim
from kstep.runs.certificate import Certificate
from kstep.runs.coverage import describe_changes
from kstep.schemes import SCHEMES
from kstep.schemes.base import Scheme
from kstep.schemes.state import Info, State
from kstep.units import FS_PER_PS, SECONDS_PER_DAY

LEAST_ACCEPTANCE = 0.01  # below which a network is of no use


class Tally:
    """Sums over all production macro-steps; `counts` is plain JSON, for the metadata and the restart file."""

    def __init__(self, scheme: Scheme, saved: dict | None = None):
        self.scheme = scheme
        self.counts: dict[str, Any]
        if saved is None:
            self.start_over()
        else:
            self.counts, self.certificate = saved, Certificate(saved.get("certificate"))

    def start_over(self, **kept) -> None:
        """Forget all counts, as after a change of network; `kept` stays in the metadata."""
        self.counts = {"macro_steps": 0, "accepted": 0, "failed_true_calls": 0, "attempts": {},
                       **dict.fromkeys(self.scheme.traits.counters, 0), **kept}
        self.certificate = Certificate()

    def add(self, state: State, info: Info) -> None:
        """Count one macro-step of every replica: what any scheme does, and what this one counts."""
        attempts: dict[str, int] = {}
        for spent in info.attempts:
            attempts[str(int(spent))] = attempts.get(str(int(spent)), 0) + 1
        self.counts = _plus(self.counts, {"macro_steps": state.n_replicas, "accepted": int(info.accepted.sum()),
                                          "attempts": attempts, **self.scheme.count(info)})
        if len(state.network_forces):
            self.certificate.add(state)
            self.counts["certificate"] = self.certificate.counts

    def summary(self) -> dict:
        """Fractions and means for the metadata."""
        known = {"certificate": self.certificate.figures()} if "certificate" in self.counts else {}
        return {"tally": self.counts, **known, **self.scheme.summarise(self.counts)}

    def progress(self, ps: float, seconds: float) -> str:
        """Speed so far and how the proposals fare, for the progress bar."""
        parts = [f"{ps / max(seconds, 1e-9) * SECONDS_PER_DAY:.3g} ps/day"]
        if self.counts["macro_steps"]:
            parts.append(self.scheme.progress(self.counts))
        if "certificate" in self.counts:
            f = self.certificate.figures("recent")
            parts += [f"E_true - E_ML spread {f['spread_kJ_per_mol']:.2g} kJ/mol",
                      f"force error {f['force_rmse_kJ_per_mol_A']:.2g} kJ/mol/A"]
        return ", ".join(filter(None, parts))


def weights_of_no_use(summary: dict) -> str:
    """A warning, where the truth took next to nothing of what a network proposed; "" elsewhere."""
    proposals, accepted = summary["tally"]["macro_steps"], summary["tally"]["accepted"]
    if not proposals or accepted >= LEAST_ACCEPTANCE * proposals:
        return ""
    return (f"of {proposals} proposals the true physics took {accepted}: frames are copies of few geometries, and the "
            "weights of this network are of no use here; learn one for this molecule and method, or take shorter steps")


def _plus(a: Any, b: Any) -> Any:
    """The sum of two counts: numbers, or dicts and lists of numbers; what only one side has stays."""
    if isinstance(b, dict):
        return {**a, **{key: _plus(a[key], value) if key in a else value for key, value in b.items()}}
    return [_plus(x, y) for x, y in zip(a, b)] if isinstance(b, list) else a + b


def describe(metadata: dict) -> str:
    """One line about a finished run."""
    ps = metadata["tally"]["macro_steps"] * metadata["jump_fs"] / FS_PER_PS
    parts = [f"{metadata['molecule']} {metadata['scheme']} k={metadata['k_steps']}: {ps:.1f} ps over "
             f"{metadata['replicas']} replicas", f"{metadata['true_calls']} true calls",
             f"{ps / max(metadata['wall_production_s'], 1e-9) * SECONDS_PER_DAY:.3g} ps/day",
             SCHEMES[metadata["scheme"]].last_words(metadata) if metadata["tally"]["macro_steps"] else ""]
    if "certificate" in metadata:
        f = metadata["certificate"]
        parts += [f"E_true - E_ML {f['mean_kJ_per_mol']:.3g} with spread {f['spread_kJ_per_mol']:.3g} kJ/mol",
                  f"force error {f['force_rmse_kJ_per_mol_A']:.3g} kJ/mol/A"]
    parts.append(describe_changes(metadata.get("species_changes") or [], metadata["replicas"]))
    if metadata["status"] != "finished":
        parts.append(metadata["status"])
    if "aim" in metadata:
        parts.append(aim.describe(metadata["aim"]))
    return ", ".join(filter(None, parts))
