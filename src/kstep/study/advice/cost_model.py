"""The arithmetic of the advice: costs and rates in, hours and a verdict out.  No physics, no clock.

Plain MD      CPU(N) = N t_eff / dt * c_step
Sampler       CPU(N) = labels + training + burn-in + N / r * c_call,      c_call = c_true + k m c_inner

t_eff: ps of one replica's dynamics per effective sample; r: effective samples per true call; m: rungs of a ladder on
the network.  They meet at N* = (what is paid once) / (difference of the two prices per sample); below it, or where
plain's sample is the cheaper one, there is nothing to gain.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar

from kstep.schemes import CONTROL, SCHEMES
from kstep.units import FS_PER_PS

OBSERVABLES = ("torsion", "energy")
# Cold starts (--learn) seen so far: ethanol (9 atoms) 400 true calls and 14 s of CPU, aspirin (21 atoms)
# 1200-2100 true calls and 85-165 s.
LABELS = 15.0, 1.5  # true calls: factor and power of the number of atoms
TRAINING_S = 0.06, 2.4  # CPU seconds besides the true calls: the same
ACCEPTANCE_AFTER_LEARNING = 0.85
BUSY_SHARE = 0.85  # of the cores that a sampler with two half-batches in flight keeps at work
# Factor within which a prediction is meant to hold.  Before training a torsion's rests on the barriers of a force
# field: right to a third for ethanol, 8 times too slow for the slowest of aspirin.
WITH_PILOT = {"torsion": 1.3, "energy": 1.3}
WITH_LADDER = {"torsion": 2.0, "energy": 1.3}  # a torsion's rests on the network's own moves, not on the pilot's chains
WITHOUT = {"torsion": 10.0, "energy": 2.0}


@dataclass(frozen=True)
class PlainMD:
    """c_step in CPU seconds, dt in fs, and t_eff in ps for each observable (None: not known)."""

    cpu_s_per_step: float
    dt_fs: float
    ps_per_sample: dict[str, float | None]
    burn_in_cpu_s: ClassVar[float] = 0.0

    def cpu_s_per_sample(self, observable: str) -> float | None:
        """CPU seconds of one effective sample of an observable; None where its rate is unknown."""
        ps = self.ps_per_sample.get(observable)
        return None if ps is None else ps * FS_PER_PS / self.dt_fs * self.cpu_s_per_step


@dataclass(frozen=True)
class SamplerCost:
    """A frozen exact sampler: c_call in CPU seconds, r for each observable, and its settings.

    k_steps: timesteps of the network per true call; moves: that they make up; ladder_K: the rungs that all make them.
    """

    cpu_s_per_call: float
    samples_per_call: dict[str, float | None]
    acceptance: float
    dt_fs: float
    k_steps: int
    burn_in_cpu_s: float = 0.0
    moves: int = 1
    ladder_K: tuple[float, ...] = ()

    @property
    def in_words(self) -> str:
        """Timestep and length of what the network does per true call."""
        length_fs, rungs = self.k_steps * self.dt_fs, "/".join(f"{t:.0f}" for t in self.ladder_K)
        if self.moves == 1 and not rungs:
            return f"dt {self.dt_fs:g} fs, k = {self.k_steps} (mean {length_fs:.0f} fs)"
        return (f"dt {self.dt_fs:g} fs, {self.moves} moves of {length_fs / self.moves:.0f} fs per true call "
                + (f"on a ladder {rungs} K" if len(self.ladder_K) > 1 else "without a ladder"))

    def cpu_s_per_sample(self, observable: str) -> float | None:
        """CPU seconds of one effective sample of an observable; None where it has no rate."""
        rate = self.samples_per_call.get(observable)
        return None if not rate else self.cpu_s_per_call / rate


def cpu_s(by: PlainMD | SamplerCost, n_samples: float, observable: str) -> float | None:
    """CPU seconds of so many effective samples, burn-in included; None where they have no price."""
    each = by.cpu_s_per_sample(observable)
    return each and by.burn_in_cpu_s + n_samples * each


@dataclass(frozen=True)
class Learning:
    """What the network costs once: true calls, and CPU seconds of everything; `paid`: a checkpoint is there."""

    true_calls: int
    cpu_s: float
    paid: bool


def expected_learning(n_atoms: int, cpu_s_per_call: float) -> Learning:
    """A cold start to acceptance 0.85: 15 N^1.5 labels, and 0.06 N^2.4 s of one core besides."""
    labels = round(LABELS[0] * n_atoms ** LABELS[1])
    return Learning(labels, labels * cpu_s_per_call + TRAINING_S[0] * n_atoms ** TRAINING_S[1], False)


def predict(n_samples: float, observable: str, plain: PlainMD, sampler: SamplerCost, learning: Learning,
            n_workers: int, factor: float) -> dict | None:
    """CPU and wall seconds of n_samples effective samples with and without md-kstep; None if unknown.

    `factor`: how far off the prediction may be.  Plain replicas fill every core, the sampler
    most of them, learning is mostly one core's; wall times are for cores that do nothing else.
    """
    each_plain, each = plain.cpu_s_per_sample(observable), sampler.cpu_s_per_sample(observable)
    if each is None:
        return None
    sampling = sampler.burn_in_cpu_s + n_samples * each
    to_pay = 0.0 if learning.paid else learning.cpu_s
    wall = to_pay + sampling / (n_workers * BUSY_SHARE if n_workers > 1 else 1)
    out: dict[str, Any] = {
        "n_samples": n_samples, "sampler_cpu_s": sampling, "total_cpu_s": to_pay + sampling, "total_wall_s": wall,
        "cold_start_cpu_s": learning.cpu_s + sampling, "sampler_cpu_s_per_sample": each,
        "plain_cpu_s": None, "plain_wall_s": None, "plain_cpu_s_per_sample": each_plain, "gain": None,
        "break_even_samples": None, "break_even_from_cold_start": None}
    if each_plain is not None:
        out["plain_cpu_s"] = n_samples * each_plain
        out["plain_wall_s"] = out["plain_cpu_s"] / n_workers
        out["gain"] = out["plain_cpu_s"] / out["total_cpu_s"]
        if each_plain > each:
            out["break_even_samples"] = (to_pay + sampler.burn_in_cpu_s) / (each_plain - each)
            out["break_even_from_cold_start"] = (learning.cpu_s + sampler.burn_in_cpu_s) / (each_plain - each)
    out["verdict"] = verdict(out, factor)
    return out


class Payoff(StrEnum):
    """What a forecast of CPU seconds comes to."""

    PAYS = "pays"
    TOO_CLOSE = "too close to call"
    DO_NOT_BOTHER = "do not bother"
    NOT_KNOWN = "not known"


def verdict(row: dict, factor: float) -> Payoff:
    """Whether the gain of a row of `predict` is larger than the factor that it may be off by."""
    if row["gain"] is None:
        return Payoff.NOT_KNOWN
    if row["gain"] < 1.0:
        return Payoff.DO_NOT_BOTHER
    return Payoff.PAYS if row["gain"] >= factor else Payoff.TOO_CLOSE


def explain(name: str, row: dict, factor: float) -> str:
    """The verdict on one observable as a sentence."""
    if row["verdict"] == Payoff.NOT_KNOWN:
        return f"{name}: plain MD never crossed it here, so its cost is beyond measure; md-kstep samples it."
    n = f"{row['n_samples']:.3g} effective samples"
    if row["verdict"] == Payoff.PAYS:
        first, whole = row["break_even_samples"], row["break_even_from_cold_start"]
        return (f"{name}: md-kstep pays. {n} take {row['gain']:.2g} times less CPU than plain MD; it is ahead from "
                f"{first:.2g} samples on" + (f" (learning counted: {whole:.2g})." if whole > first else "."))
    if row["break_even_samples"] is None:
        return (f"{name}: do not bother. An effective sample costs {seconds(row['plain_cpu_s_per_sample'])} with plain "
                f"MD and {seconds(row['sampler_cpu_s_per_sample'])} with md-kstep, so it never pays back.")
    if row["verdict"] == Payoff.DO_NOT_BOTHER:
        return (f"{name}: do not bother. {n} are too few to pay back what is paid once; that takes "
                f"{row['break_even_samples']:.2g}.")
    return (f"{name}: too close to call. The predicted gain of {row['gain']:.2g} is within the factor {factor:g} the "
            f"prediction may be off; from {row['break_even_samples'] * factor:.2g} samples on md-kstep is safe.")


def seconds(value: float | None) -> str:
    """A duration in the unit one would say it in."""
    if value is None:
        return "-"
    for size, unit in ((86400.0, "days"), (3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms")):
        if value >= (2 * size if size > 1 else size):
            return f"{value / size:.3g} {unit}"
    return f"{value * 1e6:.3g} us"


def table(rows: dict[str, dict], plain: PlainMD, learning: Learning) -> str:
    """One line per observable: plain MD beside md-kstep."""
    once = "network (paid)" if learning.paid else "network"
    head = ("effective samples of", f"plain {plain.dt_fs:g} fs: CPU", "wall", once, "sampling: CPU", "total wall",
            "gain in CPU", "ahead from N =")
    lines = [head]
    for name, row in rows.items():
        ahead = row["break_even_samples"]
        lines.append((name, seconds(row["plain_cpu_s"]), seconds(row["plain_wall_s"]), seconds(learning.cpu_s),
                      seconds(row["sampler_cpu_s"]), seconds(row["total_wall_s"]),
                      f"{row['gain']:.3g}x" if row["gain"] else "-", f"{ahead:.2g}" if ahead is not None else "never"))
    widths = [max(len(line[c]) for line in lines) for c in range(len(head))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths)).rstrip() for line in lines)


def cpu_s_per_ps(plain: PlainMD, true_call_s: float, inner_step_s: float) -> dict[str, float]:
    """CPU seconds per ps of dynamics of one replica; a scheme that follows it asks the truth as often as by default."""
    inner = FS_PER_PS / plain.dt_fs * inner_step_s
    followed = {name: kind.default_fs for name, kind in reversed(SCHEMES.items()) if kind.default_fs}
    asked = {scheme: FS_PER_PS / max(fs, plain.dt_fs) * true_call_s + inner for scheme, fs in followed.items()}
    return {CONTROL.name: FS_PER_PS / plain.dt_fs * plain.cpu_s_per_step, **asked}
