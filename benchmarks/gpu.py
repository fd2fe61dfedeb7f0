"""What a GPU brings, and whether it computes the same numbers: one record of one machine, in at most eight minutes.

    cuda_tests    the tests marked `cuda`, counted
    gpu4pyscf     energies and gradients of GPU4PySCF beside PySCF's
    inner_loop    a step of one replica: every network of the registry, 16 to 16,384 replicas, by each way
    windows       ethanol, GFN2-xTB: what the next two learn from
    training      windows per second, in float32 and with `amp`
    overlap       one batch, or two half-batches of which one is with the physics (overlap.py)

Each section is a process of its own with so many seconds: one that fails, or breaks the driver, or is too slow leaves
what it had found and a sentence, and the others follow.  What was not seen is null, and `unseen` says why.  On a CPU
(--device cpu) the same sections run; --quick makes them as small as they can be, and their figures mean nothing then.
Writes benchmarks/results/gpu.json and the table of docs/gpu.md.  Exit code 1: something failed, or disagrees.

    python benchmarks/gpu.py
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from gpu_page import table
from gpu_sections import SECTIONS, How, last_words
from guides import put
from kstep.files import read_json, write_json_atomic, write_json_compact
from running import RESULTS, ROOT, machine, provenance

RESULT, GUIDE, MARK = RESULTS / "gpu.json", ROOT / "docs" / "gpu.md", "<!-- gpu -->"
BUDGET_S = {"cuda_tests": 50, "gpu4pyscf": 50, "inner_loop": 150, "windows": 35, "training": 130, "overlap": 65}
REHEARSAL = 10.0  # patience of --quick: what is to be seen runs, on however busy a machine


def in_time(name: str, args, work: Path) -> dict:
    """What a section found in its seconds; `said` is why there is no more, or null."""
    part, log, budget = work / f"{name}.json", work / f"{name}.log", BUDGET_S[name] * args.patience
    words = [sys.executable, __file__, "--section", name, "--device", args.device, "--work", str(work)]
    began, said = time.monotonic(), None
    with log.open("w") as told:
        process = subprocess.Popen([*words, *(["--quick"] if args.quick else [])], cwd=ROOT, stderr=told,
                                   start_new_session=True)  # with all its own, so that it ends with all of them
        try:
            if process.wait(timeout=budget):
                said = last_words(log.read_text()) or f"it ended with exit code {process.returncode}"
        except subprocess.TimeoutExpired:
            said = f"it was stopped after its {budget:g} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    found = read_json(part) if part.is_file() else {}
    return {"budget_s": budget, "seconds": time.monotonic() - began, "said": said, **found}


def complaints(record: dict) -> list[str]:
    """What failed, or disagrees, in a sentence each; what was merely not seen is none."""
    sections = record["sections"]
    out = [f"{name}: {section['said']}" for name, section in sections.items() if section["said"]]
    out += [f"cuda_tests: {name} failed" for name in sections.get("cuda_tests", {}).get("failures", [])]
    out += [f"gpu4pyscf: gradients of {name} differ by {field['gradient_Ha_per_bohr']:.2g} Ha/bohr"
            for name, field in sections.get("gpu4pyscf", {}).get("fields", {}).items() if field and not field["agrees"]]
    return out


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="as small as it goes, to see that it runs")
    parser.add_argument("--patience", type=float, default=1.0, help="times the seconds of each section, on a machine "
                        f"that others use too; with --quick at least {REHEARSAL:g}")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--work", type=Path, help="folder for what is made on the way (default: a temporary one)")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)  # in this process
    args = parser.parse_args()
    args.patience = max(args.patience, REHEARSAL if args.quick else 0.0)
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA GPU here; --device cpu runs what goes without one")
    if args.quick and args.out == RESULT and not args.section:
        parser.error("--quick measures nothing worth keeping; say with --out where its record goes")
    if args.out.is_file() and not args.section and args.device == "cpu" and read_json(args.out)["device"] == "cuda":
        parser.error(f"{args.out} is the record of a GPU; give what a CPU measures another name with --out")
    return args


def main() -> None:
    args = parse()
    if args.section:
        SECTIONS[args.section](How(args.device, args.quick, args.work,
                                   partial(write_json_atomic, args.work / f"{args.section}.json")))
        return
    import torch

    record = {"machine": machine(), **provenance(), "device": args.device, "quick": args.quick,
              "gpu": torch.cuda.get_device_name() if args.device == "cuda" else None, "sections": {}}
    with contextlib.ExitStack() as stack:
        work = args.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        work.mkdir(parents=True, exist_ok=True)
        for name in args.sections:
            record["sections"][name] = section = in_time(name, args, work)
            print(f"{name}: {section['seconds']:.0f} s; {section['said'] or 'done'}", flush=True)
            write_json_compact(args.out, record)
    if args.out == RESULT:
        put(GUIDE, MARK, table(read_json(RESULT)))  # as rounded in the file
    print(f"-> {args.out}", *complaints(record), sep="\n")
    sys.exit(bool(complaints(record)))


if __name__ == "__main__":
    main()
