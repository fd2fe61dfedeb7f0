"""The plan of a plain-MD baseline, the same for MM and QM.

equil   Langevin at temperature_K from a conformer                            (never judged)
train   NVE stretches between velocity redraws at temperature_K               (dataset, reference)
drift   NVE windows at the end of it                                          (energy drift)
equil   redraw stretches while it heats to hot_temperature_K
hot     NVE stretches between velocity redraws at hot_temperature_K           (dataset only)

Within a stretch nothing is random, so k-step targets are a deterministic map; between stretches
the redraw thermalises (massive Andersen collisions: H. C. Andersen, J. Chem. Phys. 72, 2384, 1980).
"""

from __future__ import annotations

from dataclasses import dataclass

from kstep.config import BaselineConfig
from kstep.units import FS_PER_PS

HEATING_PS = 0.5


@dataclass(frozen=True)
class Stretch:
    """n_steps of one ensemble; `redraw` says that velocities are drawn anew before it."""

    role: str
    ensemble: str
    temperature_K: float
    n_steps: int
    redraw: bool


def plan_baseline(config: BaselineConfig) -> list[Stretch]:
    """All stretches of one replica, in order."""

    def steps(length_ps: float) -> int:
        return round(length_ps * FS_PER_PS / config.dt_fs)

    def redrawn(role, temperature_K, length_ps):
        total, each = steps(length_ps), max(1, steps(config.redraw_interval_ps))
        return [Stretch(role, "NVE", temperature_K, min(each, total - done), True)
                for done in range(0, total, each)]

    stretches = []
    if config.equilibration_ps:
        stretches.append(Stretch("equil", "NVT", config.temperature_K, steps(config.equilibration_ps), True))
    stretches += redrawn("train", config.temperature_K, config.length_ps)
    stretches += [Stretch("drift", "NVE", config.temperature_K, steps(config.drift_length_ps), True)
                  for _ in range(config.drift_windows)]
    if config.hot_length_ps:
        stretches += redrawn("equil", config.hot_temperature_K, min(HEATING_PS, config.hot_length_ps))
        stretches += redrawn("hot", config.hot_temperature_K, config.hot_length_ps)
    return stretches
