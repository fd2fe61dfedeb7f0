"""What a run has spent, over all its parts when it was cut and resumed, burn-in apart from production."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from kstep.runs.loop import Clock
from kstep.runs.starts import Starts


class Account:
    """Wall and CPU seconds and true calls, from the moment it is opened; `clock` is the time loop's.

    cpu_s counts this process, the workers of the true physics, and those that carry the network.
    """

    def __init__(self, starts: Starts | None = None):
        """starts: what its start geometries cost before the account was opened is on it too."""
        self._wall, self._cpu, self._calls = time.perf_counter(), time.process_time(), 0
        self._earlier: dict[str, Any] = {
            "true_calls": 0, "wall_s": 0.0, "cpu_s": 0.0, "wall_burn_in_s": 0.0, "cpu_burn_in_s": 0.0,
            "true_calls_burn_in": 0, "wall_network_s": 0.0, "wall_waiting_s": 0.0}
        self._starts = starts
        if starts is not None:
            self._add(starts.spent)
        self._pool: Any = None
        self._carry: Any = None
        self._cheaper: Any = None
        self._others: Mapping[str, Callable[[], int]] = {}
        self._others_earlier: dict[str, int] = {}
        self.clock = Clock()

    def charge(self, pool, carry, cheaper=None, others: Mapping[str, Callable[[], int]] | None = None) -> None:
        """Count the work of these too: pool has true_calls, cpu_s and wall_s; carry is None without a network; cheaper:
        the pool of a truth that is asked before that of `pool`; others: by method, what says how many calls of cheaper
        ones there were, which count apart.
        """
        self._pool, self._carry, self._cheaper, self._others = pool, carry, cheaper, others or {}

    def go_on(self, spent: dict) -> None:
        """Add to what an earlier part of the same run had spent (its `so_far`)."""
        self._earlier, self._calls = dict(spent), self._pool.true_calls
        self._others_earlier = self._earlier.pop("calls_of_others", {})
        if self._starts is not None and not self._starts.kept:  # paid once more
            self._add(self._starts.spent)
        self.clock = Clock(spent["wall_network_s"], spent["wall_waiting_s"])

    def _add(self, spent: dict) -> None:
        for key, amount in spent.items():
            self._earlier[key] += amount

    def so_far(self) -> dict:
        """Everything spent up to now, for the restart file."""
        earlier = self._earlier
        cpu = time.process_time() + sum(
            each.cpu_s for each in (self._pool, self._carry, self._cheaper) if each is not None)
        return {**earlier, **({"calls_of_others": self.calls_of_others} if self._others else {}),
                "true_calls": earlier["true_calls"] + self._pool.true_calls - self._calls,
                "wall_s": earlier["wall_s"] + time.perf_counter() - self._wall + self._pool.wall_s,
                "cpu_s": earlier["cpu_s"] + cpu - self._cpu,
                "wall_network_s": self.clock.network_s, "wall_waiting_s": self.clock.waiting_s}

    @property
    def calls_of_others(self) -> dict[str, int]:
        """Calls of each cheaper method up to now."""
        return {method: self._others_earlier.get(method, 0) + calls() for method, calls in self._others.items()}

    def begin_production(self) -> None:
        """What was spent up to now is burn-in."""
        now = self.so_far()
        self._earlier.update(true_calls_burn_in=now["true_calls"], wall_burn_in_s=now["wall_s"],
                             cpu_burn_in_s=now["cpu_s"])

    def closed(self, n_workers: int) -> dict:
        """The whole of it, for the metadata; busy_share 1: every core given to production worked all the time."""
        spent = self.so_far()
        spent.pop("calls_of_others", None)
        spent["wall_production_s"] = spent["wall_s"] - spent["wall_burn_in_s"]
        spent["cpu_production_s"] = spent["cpu_s"] - spent["cpu_burn_in_s"]
        spent["busy_share"] = spent["cpu_production_s"] / max(spent["wall_production_s"] * n_workers, 1e-9)
        return spent
