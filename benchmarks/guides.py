"""Tables of measurements in the guides, each between two marks, so that a command rewrites it and a test holds it."""

from __future__ import annotations

from pathlib import Path


def put(guide: Path, mark: str, text: str) -> None:
    """Replace what stands in `guide` between two `mark`s."""
    head, _, rest = guide.read_text().partition(mark)
    guide.write_text(f"{head}{mark}\n{text}\n{mark}{rest.partition(mark)[2]}")


def table(head: list[str], rows: list[list]) -> str:
    """In Markdown."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in [head, *rows]]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])
