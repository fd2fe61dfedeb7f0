"""Memory of whole runs: 64 replicas of a 41-atom molecule from a cold start, and a trajectory of a million frames.

What is summed is the proportional set size (PSS) of the command and all its workers, sampled
five times a second: pages that processes share count once.  Writes benchmarks/results/memory.json.

    python benchmarks/memory.py
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from kstep.files import write_json_compact
from running import RESULTS, ROOT, machine, provenance

RESULT, WORK = RESULTS / "memory.json", Path("outputs/memory")
RUNS = {
    # learning stops early: its memory is reached in the first rounds, and the run goes on as it would
    "64 replicas of tridecane (41 atoms), --learn, GFN2-xTB": (
        "06b_hybrid_integrate_qm.py", "tridecane", "CCCCCCCCCCCCC", ["--learn", "--replicas", "64", "--steps", "4",
                                                                 "--burn-in-steps", "2", "--learn-config", "LEARN"]),
    "plain MD of water, 64 replicas, a million frames, MMFF94": (
        "06_hybrid_integrate.py", "water", "O", ["--scheme", "plain", "--replicas", "64", "--steps", "15625",
                                                 "--burn-in-steps", "0"]),
}


def pss_MB(pid: int) -> float:
    """Proportional set size of a process and its descendants."""
    total, todo = 0, [pid]
    while todo:
        one = todo.pop()
        try:
            rows = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
            total += next(int(row.split()[1]) for row in rows if row.startswith("Pss:"))
            todo += [int(child) for task in Path(f"/proc/{one}/task").iterdir()
                     for child in (task / "children").read_text().split()]
        except (FileNotFoundError, ProcessLookupError, StopIteration):
            continue  # it ended meanwhile
    return total / 1000.0


def measure(script: str, name: str, smiles: str, flags: list[str]) -> dict:
    """Highest memory of one command, and what it wrote."""
    out = WORK / f"{name}.npz"
    for made in (out, Path(f"{out}.parts"), Path(f"{out}.learn")):  # what was there would be the result
        shutil.rmtree(made) if made.is_dir() else made.unlink(missing_ok=True)
    command = [sys.executable, f"src/{script}", "--smiles", smiles, "--name", name, "--out", str(out), *flags]
    start, highest = time.perf_counter(), 0.0
    with open(WORK / f"{name}.log", "w") as log:
        run = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        while run.poll() is None:
            highest = max(highest, pss_MB(run.pid))
            time.sleep(0.2)
    if run.returncode:
        raise SystemExit(f"{name} failed; see {WORK / f'{name}.log'}")
    return {"command": " ".join(["python", *command[1:]]), "highest_MB": highest, "wall_s": time.perf_counter() - start,
            "file_MB": out.stat().st_size / 1e6}


def main():
    os.chdir(ROOT)
    WORK.mkdir(parents=True, exist_ok=True)
    learn = WORK / "learn.yaml"
    learn.write_text((ROOT / "configs/learn.yaml").read_text().replace("max_true_calls: 20000", "max_true_calls: 1500"))
    done = {label: measure(script, name, smiles, [str(learn) if flag == "LEARN" else flag for flag in flags])
            for label, (script, name, smiles, flags) in RUNS.items()}
    write_json_compact(RESULT, {"machine": machine(), **provenance(), "runs": done})
    print(json.dumps(done, indent=1))


if __name__ == "__main__":
    main()
