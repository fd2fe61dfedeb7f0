"""A run's network goes on learning from the truths that the run recorded, where they show that it must."""

from __future__ import annotations

import logging
from pathlib import Path

from kstep.errors import UserError
from kstep.learning.target import Target
from kstep.training.labels import Labels

log = logging.getLogger("kstep")


OF_LEARNING = ("cpu_s_training", "wall_s_training", "ladder_K")  # what a checkpoint says that its successor does too


class Relearner:
    """What kstep.runs.tolerance and kstep.runs.rehearsal call: fits labels, old and recorded.

    That is from the weights there are, or, with `fresh`, from nothing, as learning does it: a network that is fitted on
    and on grows holes.

    checkpoint: the network the run starts with; config: the keys of configs/learn.yaml; earlier: labels the network was
    trained on before (a labels or dataset file), without which it remembers only what its weights do.  The true calls
    of the run stay on the run's own bill.
    """

    def __init__(self, checkpoint: Path, target: Target, config, *, dt_fs: float, seed: int,
                 earlier: str | Path | None = None, fresh: bool = False):
        from kstep.models import checkpoint as checkpoints, names_of

        network = checkpoints.config_of(checkpoints.load(checkpoint))
        if not network.network_class.fits_labels:
            raise UserError(f"past_tolerance: learn trains {names_of('fits_labels')}, and {checkpoint} is of arch "
                            f"{network.arch}; use past_tolerance: stop")
        self.target, self.config, self.how = target, config, {"dt_fs": dt_fs, "seed": seed}
        self.fresh = fresh
        self.earlier = Labels.empty(len(target.labelled))
        if earlier is not None:
            self.earlier, metadata = Labels.load(earlier, target.labelled, target.n_charges)
            if metadata["method"] != target.method:
                raise UserError(f"{earlier} holds labels of {metadata['method']}, the run is of {target.method}")

    def __call__(self, recorded, start: Path, out: Path) -> None:
        """Train on the recorded truths in the place of, or from, checkpoint `start`; write checkpoint `out`."""
        from kstep.models import checkpoint as checkpoints

        before = checkpoints.load(start)
        labels = self.earlier.select(slice(None))
        labels.join(self.target.labels(recorded.positions, recorded, self.target.temperatures_K[0]))
        begin = ({"passes": self.config.passes(self.config.fit_passes, len(labels))} if self.fresh else
                 {"start": before["state_dict"]})
        done = self.target.fit(labels, checkpoints.config_of(before), self.config, **begin,
                               true_calls=int(before.get("true_calls_training") or 0), **self.how)
        done.update({key: before[key] for key in OF_LEARNING if key in before})
        checkpoints.save(out, done)
        log.info("learned %d labels, %d of them recorded by this run -> %s", len(labels), len(recorded.energy), out)
