"""Follow <log-dir>/metrics.jsonl while a training writes it, and keep what a screen needs.

Rows are JSON objects, one a line, told apart by "kind": start, train, validation, checkpoint, end.
A row without a kind counts as train and validation in one; other kinds are skipped.
"""

from __future__ import annotations

import json
import math
import os
from collections import deque
from pathlib import Path

CHUNK_BYTES = 1 << 20
RECENT_ROWS = 30      # the speed is that of the last rows: an early slow step says nothing of the next
NOT_METRICS = {"time", "step", "total_steps", "epoch", "wall_s", "parameters", "batch_size", "world_size",
               "train_windows", "val_windows"}


def thin(points: list[tuple[float, float]], limit: int) -> list[tuple[float, float]]:
    """At most `limit` (step, value) points: the lowest and highest of each stretch, so that spikes stay."""
    if len(points) <= limit:
        return points
    if limit < 4:
        return points[-limit:]
    buckets = (limit - 2) // 2
    kept = {0, len(points) - 1}
    for b in range(buckets):
        stretch = range(b * len(points) // buckets, (b + 1) * len(points) // buckets)
        kept |= {min(stretch, key=lambda i: points[i][1]), max(stretch, key=lambda i: points[i][1])}
    return [points[i] for i in sorted(kept)]


def number(value) -> float | None:
    """value as a float (NaN and infinity too), None when it is no number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


class Summary:
    """What the rows so far say; a curve holds at most 4 max_points points, however long the log."""

    def __init__(self, max_points: int):
        self.max_points = max_points
        self.clear()

    def clear(self):
        """Forget every row."""
        self.curves: dict[str, list[tuple[float, float]]] = {}
        self.latest: dict[str, float] = {}    # last value of each metric
        self.best: dict[str, float] = {}      # those of the validation with the lowest val_loss
        self.validation_keys: list[str] = []
        self.facts: dict = {}                 # the start row
        self.checkpoints: dict[str, float] = {}  # file -> step, the newest last
        self.progress: dict[str, float] = {}  # step, total_steps, epoch, wall_s of the newest row
        self.ended: str | None = None
        self.validated = False
        self.skipped = self.not_finite = 0
        self.pace: deque[tuple[float, float]] = deque(maxlen=RECENT_ROWS)

    def add(self, row: dict) -> None:
        """Take in one row of metrics.jsonl; one of an unknown kind is only counted."""
        kind = row.get("kind")
        if kind not in (None, "start", "train", "validation", "checkpoint", "end"):
            self.skipped += 1
            return
        if kind == "start":
            self._start(row)
        self.progress |= {key: value for key in ("step", "total_steps", "epoch", "wall_s")
                          if (value := number(row.get(key))) is not None and math.isfinite(value)}
        if kind == "checkpoint":
            name = str(row.get("file"))
            self.checkpoints.pop(name, None)
            self.checkpoints[name] = number(row.get("step"))
        elif kind == "end":
            self.ended = str(row.get("reason", "no reason given"))
        elif kind in ("train", "validation", None):
            self._measure(row, kind)

    def _start(self, row):
        """A resumed training goes on from its checkpoint: what was logged past that step is done again."""
        step = number(row.get("step")) or 0.0
        if step <= 0:
            self.clear()
        self.facts, self.ended = row, None
        self.pace.clear()
        for name, curve in self.curves.items():
            self.curves[name] = [point for point in curve if point[0] <= step]

    def _measure(self, row, kind):
        step, wall_s = number(row.get("step")), number(row.get("wall_s"))
        values = {key: value for key in row if key not in NOT_METRICS and (value := number(row[key])) is not None}
        self.latest |= values
        for key, value in values.items():
            if not math.isfinite(value):
                self.not_finite += 1
            elif step is not None and math.isfinite(step):
                curve = self.curves.setdefault(key, [])
                curve.append((step, value))
                if len(curve) > 4 * self.max_points:
                    self.curves[key] = thin(curve, 2 * self.max_points)
        if kind == "validation" or "val_loss" in values:
            self.validated = True
            errors = [k for k in values if k not in ("lr", "samples_per_s") and not k.startswith("train_")]
            self.validation_keys += [k for k in errors if k not in self.validation_keys]
            loss = values.get("val_loss", math.nan)
            if row.get("best") is True or (row.get("best") is None and loss < self.best.get("val_loss", math.inf)):
                self.best = {k: values[k] for k in errors} | {"step": step}
        if step is not None and wall_s is not None and math.isfinite(step + wall_s):
            if self.pace and (wall_s < self.pace[-1][1] or step < self.pace[-1][0]):
                self.pace.clear()
            self.pace.append((step, wall_s))

    def left_s(self) -> float | None:
        """Seconds to total_steps at the pace of the last rows, validations included; None while unknown."""
        total, step = self.progress.get("total_steps"), self.progress.get("step")
        if self.ended is not None or total is None or step is None:
            return None
        steps, seconds = (self.pace[-1][i] - self.pace[0][i] for i in (0, 1)) if self.pace else (0, 0)
        if steps <= 0 or seconds <= 0:  # one row: the mean since the first step, if it began at none
            first = number(self.facts.get("step")) or 0.0
            steps, seconds = step - first, self.progress.get("wall_s", 0.0) if first == 0 else 0.0
        return max(0.0, total - step) * seconds / steps if steps > 0 and seconds > 0 else None

    def unknown(self, metrics: list[str]) -> list[str]:
        """Those that no row has, once rows of their sort have come (train_* early, others after a validation)."""
        trained = any(key.startswith("train_") for key in self.latest)
        return [m for m in metrics if m not in self.latest and m not in ("val_loss", "train_loss")
                and (self.validated or self.ended is not None or (trained and m.startswith("train_")))]


class Follower:
    """Reads what a growing log has gained; `poll` feeds whole lines to the summary."""

    def __init__(self, path: Path, max_points: int):
        self.path, self.summary = Path(path), Summary(max_points)
        self._forget()

    def _forget(self):
        self.exists, self.changed_at = False, None
        self._offset, self._rest, self._head, self._inode = 0, b"", b"", None
        self.summary.clear()

    def poll(self) -> bool:
        """True when something changed.  A file that shrank, or begins otherwise, is a new training."""
        try:
            with open(self.path, "rb") as handle:
                facts = os.fstat(handle.fileno())
                head = handle.read(len(self._head))
                new = facts.st_ino != self._inode or facts.st_size < self._offset or head != self._head
                if new:
                    self._forget()
                elif facts.st_size == self._offset:
                    return False
                self.exists, self._inode, self.changed_at = True, facts.st_ino, facts.st_mtime
                handle.seek(self._offset)
                while chunk := handle.read(CHUNK_BYTES):
                    if len(self._head) < 256:
                        self._head += chunk[:256 - len(self._head)]
                    self._offset += len(chunk)
                    *lines, self._rest = (self._rest + chunk).split(b"\n")
                    for line in lines:
                        self._take(line)
                return True
        except (FileNotFoundError, NotADirectoryError):
            gone = self.exists
            if gone:
                self._forget()
            return gone

    def _take(self, line: bytes) -> None:
        if not line.strip():
            return
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            self.summary.add(row)
        else:
            self.summary.skipped += 1
