"""What a learning writes down: what each round saw, and where it stands, so that a cut one goes on from there."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from kstep.runs.recorder import read_restart, write_restart
from kstep.schemes.state import State

log = logging.getLogger("kstep")


@dataclass(frozen=True)
class Seen:
    """What a set of proposals showed: how many, share accepted, spread of the energy error before it was learned.

    heldout_kT: half the 16-84 % range of E_true - E_network over the proposals, none of which the
    network had seen; at_target: at the target's temperature and length.
    """

    proposals: int
    acceptance: float
    heldout_kT: float
    at_target: bool


@dataclass
class Progress:
    """Where the loop stands; written after every round, so that a cut run goes on from there."""

    round: int = 0
    temperature_K: float = 0.0
    length_fs: float = 0.0
    true_calls: int = 0
    cpu_s: float = 0.0
    wall_s: float = 0.0
    done: bool = False
    verified: int = 0  # times that the last fit was tried


class Record:
    """rounds.jsonl and chains.npz in a learning's folder; `fingerprint` is what a resumed one must share."""

    def __init__(self, folder: Path, fingerprint: dict):
        self.rounds, self.chains = folder / "rounds.jsonl", folder / "chains.npz"
        self.fingerprint = json.loads(json.dumps(fingerprint))

    def start_over(self) -> None:
        """Forget what the rounds of an earlier learning saw."""
        self.rounds.unlink(missing_ok=True)

    def add(self, what: str, progress: Progress, seen: Seen, cost: dict, *, labels: int,
            failed_true_calls: int) -> None:
        """One more row on a round; cost: true_calls_training, cpu_s_training, wall_s_training so far."""
        p = progress
        row = {"what": what, "round": p.round, "temperature_K": p.temperature_K, "length_fs": p.length_fs,
               "labels": labels, "failed_true_calls": failed_true_calls, **asdict(seen), **cost}
        with open(self.rounds, "a") as handle:
            handle.write(json.dumps(row) + "\n")
        log.info("%s %d: %g K, %.0f fs: acceptance %.2f, held-out error %.2f kT; %d true calls, %.0f s of CPU", what,
                 p.round, p.temperature_K, p.length_fs, seen.acceptance, seen.heldout_kT, row["true_calls_training"],
                 row["cpu_s_training"])

    def save(self, state: State, rng: np.random.Generator, progress: Progress, cost: dict) -> None:
        """Chains, generator and progress, with what was spent so far (see `add`)."""
        kept = {**asdict(progress), "true_calls": cost["true_calls_training"], "cpu_s": cost["cpu_s_training"],
                "wall_s": cost["wall_s_training"]}
        write_restart(self.chains, state, rng, self.fingerprint, kept)

    def restore(self) -> tuple[State, np.random.Generator, Progress] | None:
        """What was saved last, None when nothing was; UserError when it belongs to other settings."""
        saved = read_restart(self.chains, self.fingerprint, "learned")
        return saved and (*saved[:2], Progress(**saved[2]["progress"]))
