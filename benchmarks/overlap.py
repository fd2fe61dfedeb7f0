"""Do network and physics wait for each other?  The same exact run with one batch and with two half-batches in flight.

Aspirin, GFN2-xTB, 64 replicas, with the network of a cold start of 07_benchmark.py.  Wants the machine for itself.
Writes benchmarks/results/overlap.json.

    python benchmarks/overlap.py --molecule data/raw/aspirin \\
        --checkpoint outputs/benchmark/aspirin/learn/seed_0.npz.learn/network.pt
"""

from __future__ import annotations

import argparse
import json
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from kstep.files import write_json_compact
from kstep.schemas import load_trajectory
from running import RESULTS, ROOT, machine, provenance

RESULT, WORK = RESULTS / "overlap.json", ROOT / "outputs" / "overlap"
FLAGS = ("--scheme", "metropolis", "--k-steps", "1180", "--dt-fs", "1.25", "--hydrogen-mass", "4", "--replicas", "64",
         "--steps", "40", "--burn-in-steps", "2", "--set", "length_law=fixed")
KEPT = ("wall_production_s", "cpu_production_s", "wall_network_s", "wall_waiting_s", "busy_share", "acceptance")


def one(parts: int, words: list[str]) -> None:
    """06b with that many parts of its batch in flight, in this process."""
    from kstep.runs import production, run_network

    run_network.n_halves = production.n_halves = lambda run: parts
    sys.argv = ["06b", *words]
    runpy.run_path(str(ROOT / "src/06b_hybrid_integrate_qm.py"), run_name="__main__")


def both(words: list[str], work: Path, repeats: int) -> Iterator[dict]:
    """The run of `words` with two half-batches and with one batch, in turns: a row of figures for each."""
    work.mkdir(parents=True, exist_ok=True)
    for repeat in range(repeats):
        for parts in (2, 1):
            out = work / f"{parts}_{repeat}.npz"
            subprocess.run([sys.executable, __file__, "--parts", str(parts), *words, "--overwrite", "--out", str(out)],
                           check=True)
            metadata = load_trajectory(out).metadata
            yield {"parts": parts, **{key: metadata[key] for key in KEPT}}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--molecule", required=True)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    words = ["--molecule", args.molecule, "--checkpoint", args.checkpoint, *FLAGS]
    rows = list(both(words, WORK, args.repeats))
    write_json_compact(RESULT, {"machine": machine(), **provenance(), "runs": rows})
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    if "--parts" in sys.argv[:2]:
        one(int(sys.argv[2]), sys.argv[3:])
    else:
        main()
