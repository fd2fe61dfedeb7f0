"""What an earlier learning left, its network and its labels: for another temperature, another solvent or method."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from kstep.errors import UserError
from kstep.files import sha256
from kstep.learning.target import Target
from kstep.molecules.molecule import Molecule
from kstep.training.labels import Labels

log = logging.getLogger("kstep")


@dataclass(frozen=True)
class Earlier:
    """checkpoint: a network whose moves make the first labels, in the place of hot true dynamics; labels: a file.

    Labels are true of one method alone, and of another one they are left aside.  A network of another method, or of the
    molecule in another solvent, still knows where the molecule goes.
    """

    checkpoint: Path | None = None
    labels: Path | None = None

    @property
    def facts(self) -> dict:
        """What a resumed learning must share; UserError for files that are not there."""
        return {"earlier": {name: sha256(path) for name, path in self._files().items()}}

    def _files(self) -> dict[str, Path]:
        """Those that are given, all of them there."""
        given = {"checkpoint": self.checkpoint, "labels": self.labels}
        files = {name: Path(path) for name, path in given.items() if path is not None}
        for path in files.values():
            if not path.is_file():
                raise UserError(f"{path} does not exist; give the network.pt and labels.npz of an earlier <out>.learn")
        return files

    def check(self, molecule: Molecule) -> None:
        """UserError for files that are not there, cannot be read, or are of another molecule."""
        from kstep.models import checkpoint as checkpoints

        files = self._files()
        if "checkpoint" in files:
            path = files["checkpoint"]
            checkpoints.check_fits(checkpoints.load(path), path, molecule.numbers, molecule.bonds)
        if "labels" in files:
            Labels.load(self.labels or "", molecule)

    def labels_of(self, target: Target) -> tuple[Labels, int]:
        """Labels that are true of the target, and the true calls they cost."""
        nothing = Labels.empty(len(target.labelled)), 0
        if self.labels is None:
            return nothing
        labels, metadata = Labels.load(self.labels, target.labelled, target.n_charges)
        if metadata["method"] != target.method:
            log.warning("%s holds labels of %s, which say nothing of %s; they are left aside", self.labels,
                        metadata["method"], target.method)
            return nothing
        return labels, int(metadata["true_calls"])

    def arguments(self, target: Target) -> dict:
        """How the earlier network is loaded, whatever its method, by the target's recipe."""
        from kstep.models import checkpoint as checkpoints

        method = checkpoints.load(self.checkpoint)["method"]
        if method != target.method:
            log.warning("%s was trained on %s: it leads the way to the first labels of %s, and no more",
                        self.checkpoint, method, target.method)
        return {**target.recipe.arguments, "method": method, "checkpoint": self.checkpoint, "device": target.device}


def warn_beyond(checkpoint: Path, temperatures_K) -> None:
    """Say aloud where a run asks for temperatures (K) that its network never learned, as far as it says what it did."""
    from kstep.models import checkpoint as checkpoints

    rungs_K = checkpoints.load(checkpoint).get("ladder_K")
    if not rungs_K:
        return
    beyond = [t for t in temperatures_K if not rungs_K[0] * 0.99 <= t <= rungs_K[-1] * 1.01]
    if beyond:
        log.warning("%s learned from %g to %g K, and this run is at %s K: sampling stays exact, but acceptance may be "
                    "low; learn on with --learn, --checkpoint and its --labels", checkpoint, rungs_K[0], rungs_K[-1],
                    ", ".join(f"{t:g}" for t in beyond))
