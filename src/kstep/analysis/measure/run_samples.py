"""The samples that one run by itself holds: of its energy and of the slowest torsion it has seen crossed."""

from __future__ import annotations

from collections.abc import Sequence

from kstep.analysis.measure.fitted_tail import FittedTail
from kstep.analysis.measure.profile import characterise
from kstep.analysis.measure.samples import (
    Series,
    common_rotamers,
    counted,
    crossed,
    effective_samples,
    series_of,
    slowest,
)
from kstep.errors import UserError
from kstep.schemas import Trajectory
from kstep.scheme_traits import traits_of


def samples_of_run(trajectory: Trajectory) -> dict:
    """`samples_of` a finished run; raises UserError when there are no production frames."""
    profile = characterise(trajectory)
    if profile is None:
        raise UserError("the trajectory holds no production frames, or fewer than four per replica")
    return samples_of(series_of(profile), of_dynamics=traits_of(trajectory.metadata).keeps_velocities)


def samples_of(series: Series, *, of_dynamics: bool, beside: Sequence[Series] = ()) -> dict:
    """Effective samples of the potential energy and of the slowest torsion that has two rotamers or more.

    beside: other series of the molecule, whose rotamers are there in this one too, whether or not it saw them.

    {"energy", "torsion" (None without such a torsion), "standard_error" of both, "label", "never_crossed": labels,
    "frames", "ps"}, with the run's own rotamers and correlation times with a fitted tail.
    """
    found = effective_samples(series, counted(common_rotamers([series, *beside], []))[0], FittedTail(of_dynamics))
    moving = crossed(found["torsions"])
    label, torsion = slowest(moving) or (None, None)
    return {"energy": found["energy"]["samples"], "torsion": torsion and torsion["samples"], "label": label,
            "standard_error": {"energy": found["energy"]["standard_error"],
                               "torsion": torsion and torsion["standard_error"]},
            "never_crossed": [name for name in found["torsions"] if name not in moving],
            "frames": series.n_frames, "ps": series.length_ps}
