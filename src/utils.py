"""What every numbered script shares; its parts live in kstep.cli, kstep.provenance and kstep.files."""

from __future__ import annotations

import sys

from kstep.cli.program import exit_code, run_command
from kstep.files import read_json, write_json_atomic  # noqa: F401 (benchmarks take these from here)
from kstep.provenance import git_commit, machine, provenance  # noqa: F401


def run_script(command, description: str, numbered: str) -> None:
    """Run a command of kstep.cli with the flags of a numbered script, and end with its exit code."""
    sys.exit(exit_code(lambda: run_command(command, description, numbered=numbered)))
