"""What every numbered script shares; its parts live in kstep.cli, kstep.provenance and kstep.files."""

from __future__ import annotations

import sys

# kstep.cli.program comes first: it sees to one thread per process, which BLAS reads only once, at import
from kstep.cli.program import exit_code, log, run_command, setup_logging  # noqa: F401
from kstep.cli.flags import add_common_arguments, make_parser, non_negative_int, positive_float, positive_int  # noqa: F401
from kstep.files import read_json, write_json_atomic  # noqa: F401
from kstep.provenance import git_commit, machine, provenance  # noqa: F401


def pick_device(wanted: str) -> str:
    """See kstep.models.device, which loads torch."""
    from kstep.models import device

    return device.pick_device(wanted)


def run_script(command, description: str | None = None, numbered: str | None = None) -> None:
    """Run a command of kstep.cli with the flags of a numbered script, and end with its exit code."""
    sys.exit(exit_code(command if description is None else lambda: run_command(command, description, numbered=numbered)))
