"""What every benchmark shares: how it runs a numbered script (one thread, kept results, the command for all to see),
where its results go, and what it says of the machine."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"  # one JSON a benchmark, rounded and compact (kstep.files.write_json_compact)
sys.path.insert(0, str(ROOT / "src"))  # utils, which the numbered scripts share

from kstep.cli.program import SHORT_OF_AIM  # noqa: E402
from utils import git_commit, machine, provenance  # noqa: E402, F401 (benchmarks take them from here)

PHYSICS_FAILED = 3  # exit code of a run whose dynamics broke; what came before is there


def sh(result: Path, *command) -> None:
    """Run a numbered script unless its result is there; exits where it fails and leaves none."""
    if result.exists():
        return
    words = [str(word) for word in command]
    print("$ python " + " ".join(words), flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    code = subprocess.run([sys.executable, *words], cwd=ROOT, env=environment).returncode
    if code and not (code in (PHYSICS_FAILED, SHORT_OF_AIM) and result.exists()):
        sys.exit(f"the command above ended with exit code {code}")


def here(result: Path, script: str, *command) -> float:
    """As `sh`, but in this process, which saves a short run the start of Python; returns the CPU seconds it took."""
    if result.exists():
        return 0.0
    words = [script, *map(str, command)]
    print("$ python " + " ".join(words), flush=True)
    before, kept = time.process_time(), sys.argv
    sys.argv = words
    try:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    except SystemExit as end:
        if end.code:
            sys.exit(f"the command above ended with exit code {end.code}")
    finally:
        sys.argv = kept
    return time.process_time() - before
