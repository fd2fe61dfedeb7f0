"""A `checked` run left its tolerances: its network goes on learning from the truths the run recorded."""

from __future__ import annotations

import logging
from pathlib import Path

from kstep.errors import UserError
from kstep.models import checkpoint as checkpoints
from kstep.models.model_config import ModelConfig
from kstep.molecules.molecule import Molecule
from kstep.training.fit import fit
from kstep.training.labels import Labels

log = logging.getLogger("kstep")


class Relearner:
    """What kstep.runs.tolerance calls: fits labels, old and recorded, from the weights there are.

    checkpoint: the network the run starts with; config: the keys of configs/learn.yaml; earlier: labels the network was trained on before (a
    labels or dataset file), without which it remembers only what its weights do.  The true calls of
    the run stay on the run's own bill.
    """

    def __init__(self, checkpoint: Path, molecule: Molecule, config, *, method: str, dt_fs: float, temperature_K: float,
                 seed: int, earlier: str | Path | None = None):
        arch = checkpoints.load(checkpoint)["config"]["arch"]
        if arch != "pair_mlp":
            raise UserError(f"past_tolerance: learn trains pair_mlp, and {checkpoint} is of arch {arch}; use "
                            "past_tolerance: stop")
        self.molecule, self.config, self.seed = molecule, config, seed
        self.facts = {"method": method, "dt_fs": dt_fs, "temperature_K": temperature_K}
        self.earlier = Labels.empty(len(molecule))
        if earlier is not None:
            self.earlier, metadata = Labels.load(earlier)
            if self.earlier.positions.shape[1] != len(molecule):
                raise UserError(f"{earlier} holds labels of another molecule than {molecule.name}")
            if metadata["method"] != method:
                raise UserError(f"{earlier} holds labels of {metadata['method']}, the run is of {method}")

    def __call__(self, recorded, start: Path, out: Path) -> None:
        """Train on the recorded truths, going on from checkpoint `start`; write checkpoint `out`."""
        before = checkpoints.load(start)
        labels = self.earlier.select(slice(None))
        labels.append(recorded.positions, recorded.energy, recorded.forces, self.facts["temperature_K"])
        done = fit(ModelConfig(**before["config"]), self.molecule, labels, self.config, seed=self.seed,
                   true_calls=int(before.get("true_calls_training") or 0), start=before["state_dict"], **self.facts)
        checkpoints.save(out, done.checkpoint)
        log.info("learned %d labels, %d of them recorded by this run, in %.0f s of CPU -> %s", len(labels),
                 len(recorded.energy), done.cpu_s, out)
