"""A `checked` run left its tolerances: its network goes on learning from the truths the run recorded."""

from __future__ import annotations

import logging
from pathlib import Path

from kstep.errors import UserError
from kstep.learning.target import Target
from kstep.training.labels import Labels

log = logging.getLogger("kstep")


class Relearner:
    """What kstep.runs.tolerance calls: fits labels, old and recorded, from the weights there are.

    checkpoint: the network the run starts with; config: the keys of configs/learn.yaml; earlier: labels the network was
    trained on before (a labels or dataset file), without which it remembers only what its weights do.  The true calls
    of the run stay on the run's own bill.
    """

    def __init__(self, checkpoint: Path, target: Target, config, *, dt_fs: float, seed: int,
                 earlier: str | Path | None = None):
        from kstep.models import checkpoint as checkpoints, names_of

        network = checkpoints.config_of(checkpoints.load(checkpoint))
        if not network.network_class.fits_labels:
            raise UserError(f"past_tolerance: learn trains {names_of('fits_labels')}, and {checkpoint} is of arch "
                            f"{network.arch}; use past_tolerance: stop")
        self.target, self.config, self.how = target, config, {"dt_fs": dt_fs, "seed": seed}
        self.earlier = Labels.empty(len(target.labelled))
        if earlier is not None:
            self.earlier, metadata = Labels.load(earlier)
            if self.earlier.positions.shape[1] != len(target.labelled):
                raise UserError(f"{earlier} holds labels of another molecule than {target.molecule.name}")
            if metadata["method"] != target.method:
                raise UserError(f"{earlier} holds labels of {metadata['method']}, the run is of {target.method}")

    def __call__(self, recorded, start: Path, out: Path) -> None:
        """Train on the recorded truths, going on from checkpoint `start`; write checkpoint `out`."""
        from kstep.models import checkpoint as checkpoints

        before = checkpoints.load(start)
        labels = self.earlier.select(slice(None))
        labels.join(self.target.labels(recorded.positions, recorded, self.target.temperatures_K[0]))
        done = self.target.fit(labels, checkpoints.config_of(before), self.config, start=before["state_dict"],
                               true_calls=int(before.get("true_calls_training") or 0), **self.how)
        checkpoints.save(out, done)
        log.info("learned %d labels, %d of them recorded by this run -> %s", len(labels), len(recorded.energy), out)
