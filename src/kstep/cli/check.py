"""What is installed, a known energy from each backend, and how to get what is missing.

    kstep check
"""

from __future__ import annotations

from itertools import groupby

from kstep.cli.flags import add_common_arguments


def add_flags(parser, numbered: str | None = None) -> None:
    """Flags of `kstep check`."""
    add_common_arguments(parser, seed=False)


def run(args) -> int:
    """Print a line for each part; 2 where something that every installation has does not work."""
    from kstep.forces.self_check import check_installation, core_works

    rows = check_installation()
    for part, of_part in groupby(rows, key=lambda row: row.part):
        print(f"{part.value}s" if part.value != "machine" else part.value)
        for row in of_part:
            words = " ".join(filter(None, (row.version, row.found)))
            print(f"  {row.name:20s} {row.state.value:8s} {words}" + (f"; {row.remedy}" if row.remedy else ""))
    return 0 if core_works(rows) else 2
