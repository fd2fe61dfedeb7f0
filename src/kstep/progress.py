"""How far a long run is: a bar on a terminal, a line a minute anywhere else (a log, a batch system's output)."""

from __future__ import annotations

import logging
import sys
from typing import Any

from tqdm import tqdm

LINES_APART_S = 60.0

log = logging.getLogger("kstep")


class _Lines(tqdm):
    """What a bar would show, as lines of the log."""

    is_closed = False

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Say it."""
        log.info("%s", (msg or str(self)).strip())
        return True

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> None:
        """News wait for their minute."""
        super().set_postfix_str(s, refresh=False)

    def close(self) -> None:
        """The last line, which no carriage return has to clear."""
        if not self.is_closed:
            self.display()
        self.is_closed = True


def progress_bar(**how: Any) -> tqdm:
    """tqdm(**how) on a terminal; elsewhere the same, a line a minute to the log."""
    if sys.stderr.isatty():
        return tqdm(**how)
    ends = how.get("total") is not None or how.get("iterable") is not None
    left = " of {total_fmt} {unit} in {elapsed}, {remaining} to go" if ends else " {unit} in {elapsed}"
    return _Lines(**how, ascii=True, mininterval=LINES_APART_S, maxinterval=LINES_APART_S,
                  bar_format="{desc}: {n_fmt}" + left + "{postfix}")
