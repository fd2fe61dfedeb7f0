"""What happens when `checked` leaves its tolerances: the run stops, or its network learns what was seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kstep.errors import UserError
from kstep.npz import read_npz, write_npz
from kstep.schemes.hybrid_config import HybridConfig

EXTRA = "extra_"  # before the names of `Truth.extra` in a restart folder
GROWTH = 0.2  # a network learns again when there is so much more than last time; sooner it would learn the same


@dataclass(frozen=True)
class Recorded:
    """True answers of a run: positions (L,N,3) nm, energy (L,) kJ/mol, forces (L,N,3) kJ/mol/nm, extra as in Truth."""

    positions: np.ndarray
    energy: np.ndarray
    forces: np.ndarray
    extra: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def bare(self) -> tuple[np.ndarray, np.ndarray]:
        """Energy and forces, as of a Truth: they are those without restraints."""
        return self.energy, self.forces


# learn(recorded, start, out): train on the recorded truths, going on from checkpoint `start`; write checkpoint `out`
OnViolation = Callable[[Recorded, Path, Path], None]


def much_is_new(n_recorded: int, tally, n_known: int = 0) -> bool:
    """Whether true answers are so many more than a run last learned from, beside n_known labels of before, that another
    network would be."""
    learned = tally.counts.get("learned") or [{"truths": 0}]
    return n_known + n_recorded >= (1.0 + GROWTH) * (n_known + learned[-1]["truths"])


def learn_from(recorded: Recorded, words: str, done: int, start: Path, out: Path, tally, learn: OnViolation,
               n_known: int = 0) -> Path | None:
    """A network that has learned the true answers of a run into `out` too, made after `done` macro-steps for a reason
    in words; None while there is too little that is new, beside n_known labels of before.

    The tally starts over, since it belongs to one network, and remembers what it learned at.
    """
    learned = tally.counts.setdefault("learned", [])
    if not much_is_new(len(recorded.energy), tally, n_known):
        return None
    checkpoint = out.with_name(f"{out.stem}.learned_{len(learned) + 1}.pt")
    learn(recorded, start, checkpoint)
    tally.start_over(learned=[*learned, {"macro_step": done, "why": words, "truths": len(recorded.energy),
                                         "checkpoint": str(checkpoint)}])
    return checkpoint


@dataclass
class Tolerances:
    """Compares the running certificate with the tolerances after every macro-step.

    With past_tolerance `learn` it keeps every true answer and calls `on_violation`; the network goes
    to <run>.learned_1.pt, _2 and so on beside the run, so that a restart finds the one it had.
    """

    hybrid: HybridConfig
    out: Path
    on_violation: OnViolation | None = None
    _answers: list[dict[str, np.ndarray]] = field(default_factory=list)  # as they are written to a restart folder

    def __post_init__(self):
        if self.learns and self.on_violation is None:
            raise UserError("past_tolerance: learn needs something that trains the network, and nothing here does; use "
                            "past_tolerance: stop")

    @property
    def learns(self) -> bool:
        """Whether a run past its tolerances trains its network and goes on."""
        return self.hybrid.past_tolerance == "learn"

    @property
    def _limits(self) -> tuple[float | None, float | None]:
        return self.hybrid.max_energy_spread_kJ_per_mol, self.hybrid.max_force_rmse_kJ_per_mol_A

    @property
    def is_on(self) -> bool:
        """Whether there are any; then nothing may be in flight between two macro-steps."""
        return any(limit is not None for limit in self._limits)

    def observe(self, proposal, truth) -> None:
        """Keep the answers of a true call, if they may have to be learned, without restraints."""
        fine = ~truth.failed
        if self.learns and fine.any():
            energy, forces = truth.bare
            whole = {"positions": proposal.positions, "energy": energy, "forces": forces,
                     **{EXTRA + name: values for name, values in truth.extra.items()}}
            self._answers.append({name: values[fine] for name, values in whole.items()})

    def _joined(self) -> dict[str, np.ndarray]:
        return {name: np.concatenate([answer[name] for answer in self._answers]) for name in self._answers[0]}

    def violation(self, tally) -> str | None:
        """What lies past its tolerance, in words."""
        return tally.certificate.past(*self._limits)

    def learn(self, words: str, done: int, start: Path, tally) -> Path | None:
        """Have the network learn; returns its new checkpoint, None while there is too little new to learn from."""
        answers = self._joined()
        positions, energy, forces = (answers.pop(name) for name in ("positions", "energy", "forces"))
        extra = {name.removeprefix(EXTRA): values for name, values in answers.items()}
        return learn_from(Recorded(positions, energy, forces, extra), words, done, start, self.out, tally,
                          self.on_violation)

    def save(self, parts: Path) -> None:
        """Into a run's restart folder: what is to be learned."""
        if self._answers:
            write_npz(parts / "recorded.npz", self._joined())

    @property
    def n_recorded(self) -> int:
        """How many true answers are kept."""
        return sum(len(answer["energy"]) for answer in self._answers)

    def restore(self, parts: Path, n_recorded: int | None) -> None:
        """From a run's restart folder, as many as there were at its restart file (None: all, one of before it counted).

        What was recorded only grows, so that the file also serves the restart file before the last one.
        """
        if not self.learns or n_recorded == 0 or (n_recorded is None and not (parts / "recorded.npz").is_file()):
            return
        answers = read_npz(parts / "recorded.npz")
        there = len(answers["energy"])
        if n_recorded is not None and there < n_recorded:
            raise UserError(f"{parts / 'recorded.npz'} holds {there} true answers, and its run has recorded "
                            f"{n_recorded}; put back a copy of it")
        self._answers = [{name: values[:n_recorded] for name, values in answers.items()}]
