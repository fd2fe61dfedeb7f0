"""Hours of a run under faults: is a sample lost or doubled, does memory grow, are the energies those of a quiet run?

Methanol with GFN2-xTB, two workers; its network is learned first, without faults, where the scheme needs one.  A run of
fixed length is made twice, with the same seed: undisturbed, and with a fault every few minutes, at random:

    kill worker   a process of the run, by SIGKILL: it is replaced, and the run goes on
    stop worker   the same by SIGSTOP: it is given up after the time limit of a call, and replaced
    kill run      all of it, by SIGKILL; gone on with by --resume
    end run       by SIGTERM; --resume
    full disk     no file may grow any more (RLIMIT_FSIZE of the running process), until the run ends; --resume
    damaged file  the run is killed, and bytes of its newest restart file, or of the newest true calls kept since then,
                  are flipped; --resume

It holds if the run ends, each end by a fault has the exit code that it should have, its frames are those of the quiet
run, the consecutive macro-steps of every replica, once each, its true calls are as many, its mean energy and the
populations of its conformers and of the wells of its torsions are within 4 standard errors, and the memory of both runs
in the last quarter is at most 5 % above that in the second (of runs of ten minutes or more; what a process leaks shows
in the quiet one, which nobody starts again).  Whether the two are the same bits is said too: they are where an SCF
starts cold, or no worker was lost.  Writes benchmarks/results/soak.json.

    python benchmarks/soak.py --minutes 120
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kstep.analysis.measure.populations import populations
from kstep.analysis.measure.statistics import estimate_means
from kstep.dihedrals import dihedrals_deg
from kstep.files import write_json_compact
from kstep.schemas import load_trajectory
from kstep.topology import neighbours
from running import RESULTS, ROOT, machine, provenance

FAULTS = ("kill worker", "stop worker", "kill run", "end run", "full disk", "damaged file")
CALL_LIMIT_S = 15  # of the run, so that a stopped worker costs seconds, not the minute that is usual
QUIET_SHARE = 0.3  # of the time, for the run without faults
PILOT_STEPS = 200
MOST_GROWTH, MOST_DEVIATION = 0.05, 4.0
LOOKS_APART_S, FEWEST_LOOKS = 2.0, 200
BYTES_FLIPPED = 64


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=120.0, help="of both runs together, learning apart")
    parser.add_argument("--fault-minutes", type=float, default=3.0, help="mean time between two faults")
    parser.add_argument("--most-faults", type=int, default=10**6, help="after which the run is left alone")
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=FAULTS)
    parser.add_argument("--scheme", default="metropolis", help="plain needs no network")
    parser.add_argument("--replicas", type=int, default=8)
    parser.add_argument("--smiles", default="CO")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("outputs/soak"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=RESULTS / "soak.json")
    return parser.parse_args()


# processes -------------------------------------------------------------------------------------


def children(pid: int) -> list[int]:
    """Worker processes of a run: all below it but Python's own resource tracker."""
    with contextlib.suppress(OSError):
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(child) for child in found if "resource_tracker" not in command_of(int(child))]
    return []


def command_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def cpu_s(pid: int) -> float:
    """CPU seconds of a run, with its workers and those that it has lost."""
    ticks = 0
    for process in [pid, *children(pid)]:
        with contextlib.suppress(OSError, IndexError):
            fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
            ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_MB(pid: int) -> float:
    """Resident memory of a run with its workers."""
    pages = 0
    for process in [pid, *children(pid)]:
        with contextlib.suppress(OSError, IndexError):
            pages += int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


# faults ----------------------------------------------------------------------------------------


@dataclass
class Patient:
    """A run that is disturbed: its process now, and what has happened to it (seconds since the start, words)."""

    command: list[str]
    out: Path
    rng: random.Random
    process: subprocess.Popen | None = None
    history: list[tuple[float, str]] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    wrong_ends: list[str] = field(default_factory=list)
    disk_is_full: bool = False

    def start(self) -> None:
        """Begin, or go on."""
        self.disk_is_full = False  # the limit was that of the process before
        with open(self.out.with_suffix(".txt"), "ab") as said:
            self.process = subprocess.Popen([*self.command, "--resume"], cwd=ROOT, stdout=said, stderr=said)

    def fault(self, kind: str) -> None:
        """One fault; the run goes on by itself, or is gone on with."""
        self.history.append((round(time.monotonic() - self.began, 1), kind))
        if kind in ("kill worker", "stop worker"):
            if workers := children(self.process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.rng.choice(workers), signal.SIGKILL if kind == "kill worker" else signal.SIGSTOP)
            return
        if kind == "full disk":
            resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
            self.disk_is_full = True
            return  # the run ends by itself at its next file, and is gone on with where that is seen
        number = signal.SIGTERM if kind == "end run" else signal.SIGKILL
        self.process.send_signal(number)
        code = self.process.wait(timeout=60)
        if code not in (0, -number, *([143, 2] if number == signal.SIGTERM and self.disk_is_full else
                                      [143] if number == signal.SIGTERM else [2] if self.disk_is_full else [])):
            self.wrong_ends.append(f"{kind}: exit code {code}")
        if kind == "damaged file":
            self.damage()
        self.start()

    def damage(self) -> None:
        """Flip bytes in the middle of the newest restart file, or of what was kept since it."""
        parts = self.out.with_name(f"{self.out.name}.parts")
        found = [*parts.glob("checkpoint*.npz"), *parts.glob("calls_*.npz")]
        if not found:
            return
        path = max(found, key=lambda one: one.stat().st_mtime_ns)
        content = bytearray(path.read_bytes())
        first = self.rng.randrange(len(content))
        for i in range(first, min(first + BYTES_FLIPPED, len(content))):
            content[i] ^= 0xFF
        path.write_bytes(content)
        self.history[-1] = (self.history[-1][0], f"damaged file {path.name}")

    def look(self) -> bool:
        """Note the memory; whether the run is done.  One that a fault has ended goes on."""
        if self.process.poll() is None:
            self.memory.append((time.monotonic() - self.began, memory_MB(self.process.pid)))
            return False
        if self.process.returncode == 0:
            return True
        if not (self.disk_is_full and self.process.returncode == 2):
            raise SystemExit(f"the run ended with code {self.process.returncode} after {self.history[-3:]}; see "
                             f"{self.out.with_suffix('.txt')}")
        self.start()
        return False


def disturbed(command: list[str], out: Path, faults, mean_s: float, most_s: float, rng: random.Random,
              most_faults: int, loading_cpu_s: float) -> Patient:
    """Run to the end under faults, of each kind in turn in a random order, the first at once, then exponentially apart.

    loading_cpu_s: what a run takes before its first step; none is disturbed before that, or where faults come faster
    than it loads it would never be disturbed at its work.
    """
    patient, queue = Patient(command, out, rng), []
    patient.start()
    due = time.monotonic()
    while not patient.look():
        if time.monotonic() - patient.began > most_s:
            patient.process.kill()
            raise SystemExit(f"the run is not done after {most_s:.0f} s; see {out.with_suffix('.txt')}")
        if (time.monotonic() > due and len(patient.history) < most_faults and patient.process.poll() is None
                and cpu_s(patient.process.pid) > loading_cpu_s):
            queue = queue or rng.sample(list(faults), len(faults))
            patient.fault(queue.pop())
            due = time.monotonic() + rng.expovariate(1.0 / mean_s)
        time.sleep(min(LOOKS_APART_S, mean_s / 10))
    return patient


# judgement -------------------------------------------------------------------------------------


def lost_or_doubled(trajectory, quiet) -> int:
    """Frames, known by replica and timestep, that only one of the two runs has, or one of them more often."""
    def frames(run) -> Counter:
        return Counter(zip(run.replica.tolist(), run.step.tolist()))

    here, there = frames(trajectory), frames(quiet)
    return ((here - there) + (there - here)).total()


def out_of_step(trajectory, k_steps: int) -> int:
    """Places where a replica's frames are not consecutive macro-steps, k_steps timesteps apart."""
    return sum(int(np.count_nonzero(np.diff(trajectory.step[trajectory.replica == replica]) != k_steps))
               for replica in np.unique(trajectory.replica))


def shares_apart(a, b) -> float:
    """The largest difference of two runs in the population of a conformer, or of a third of a turn of a torsion, over
    its standard error; 0 where there is nothing to tell apart."""
    bound = neighbours(len(a.atom_types), a.bonds)
    ends = [[next((n for n in bound[i] if n != j), None), i, j, next((n for n in bound[j] if n != i), None)]
            for i, j in a.bonds.tolist()]
    torsions = [np.array(atoms) for atoms in ends if None not in atoms]

    def shares(run):
        """{what: (share, error)}"""
        found = populations([run])
        of = {f"conformer {c.label}": (c.population, c.population_error) for c in found.conformers}
        for torsion in torsions:
            angles = dihedrals_deg(run.pos[run.frames_of("train")], torsion[None])[:, 0]
            replica = run.replica[run.frames_of("train")]
            for well in range(3):
                inside = (((angles + 360.0) % 360.0) // 120.0 == well).astype(float)
                mean = estimate_means([inside[replica == r][:, None] for r in np.unique(replica)], 1.0)
                of[f"torsion {torsion.tolist()} {well}"] = float(mean.mean[0]), float(mean.standard_error[0])
        return of

    one, other, none = shares(a), shares(b), (0.0, 0.0)
    apart = [(one.get(what, none), other.get(what, none)) for what in one.keys() | other.keys()]
    return max((abs(x - y) / max(float(np.hypot(dx, dy)), 1e-3) for (x, dx), (y, dy) in apart), default=0.0)


def mean_energy(trajectory) -> tuple[float, float]:
    """Mean true energy of production in kJ/mol, and its standard error."""
    frames = trajectory.frames_of("train")
    series = [trajectory.Epot[frames][trajectory.replica[frames] == r][:, None] for r in np.unique(trajectory.replica)]
    found = estimate_means(series, 1.0)
    return float(found.mean[0]), float(found.standard_error[0])


def growth(memory: list[tuple[float, float]]) -> float | None:
    """Median memory of the last quarter over that of the second, less one; None where there were too few looks."""
    if len(memory) < FEWEST_LOOKS:
        return None
    quarters = np.array_split(np.array([used for _, used in memory]), 4)
    return statistics.median(quarters[3]) / statistics.median(quarters[1]) - 1.0


def judge(quiet: Path, noisy: Path, patient: Patient, quiet_memory: list[tuple[float, float]]) -> dict:
    """What the two runs say of each other."""
    a, b = load_trajectory(quiet), load_trajectory(noisy)
    k = b.metadata["k_steps"]
    (mean_a, error_a), (mean_b, error_b) = mean_energy(a), mean_energy(b)
    deviation = abs(mean_a - mean_b) / max(float(np.hypot(error_a, error_b)), 1e-12)
    found = {
        "frames": len(b.pos), "frames_of_quiet_run": len(a.pos), "lost_or_doubled": lost_or_doubled(b, a),
        "out_of_step": out_of_step(b, k), "wrong_ends": patient.wrong_ends, "shares_apart": shares_apart(a, b),
        "true_calls": b.metadata["true_calls"], "true_calls_of_quiet_run": a.metadata["true_calls"],
        "mean_energy": [mean_b, error_b], "mean_energy_of_quiet_run": [mean_a, error_a], "deviation": deviation,
        "same_bits": bool(np.array_equal(a.pos, b.pos) and np.array_equal(a.Epot, b.Epot)),
        "memory_growth": growth(patient.memory), "memory_growth_of_quiet_run": growth(quiet_memory),
        "memory_MB": statistics.median(used for _, used in patient.memory),
        "faults": [f"{when:.0f} s: {what}" for when, what in patient.history]}
    fails = {
        "frames": found["lost_or_doubled"] or found["out_of_step"], "ends": found["wrong_ends"],
        "true calls": found["true_calls"] != found["true_calls_of_quiet_run"], "energy": deviation > MOST_DEVIATION,
        "populations": found["shares_apart"] > MOST_DEVIATION,
        "memory": max(found[key] or 0.0 for key in ("memory_growth", "memory_growth_of_quiet_run")) > MOST_GROWTH}
    return found | {"fails": [what for what, fault in fails.items() if fault], "holds": not any(fails.values())}


# the story -------------------------------------------------------------------------------------


def command_for(args, out: Path, steps: int) -> list[str]:
    config = args.work / "qm.yaml"
    config.write_text(f"backend: tblite\ncall_limit_s: {CALL_LIMIT_S}\n")
    network = () if args.scheme == "plain" else (
        "--checkpoint", str(args.work.resolve() / "learned.npz.learn/network.pt"), "--k-steps", "50")
    return [sys.executable, str(ROOT / "src/06b_hybrid_integrate_qm.py"), "--smiles", args.smiles, "--name", "soak",
            "--qm-config", str(config.resolve()), "--scheme", args.scheme, *network, "--replicas", str(args.replicas),
            "--num-workers", "2", "--device", "cpu", "--set", "inner=numpy" if network else "inner=auto",
            "--burn-in-steps", "10", "--steps", str(steps), "--seed", str(args.seed), "--out", str(out.resolve())]


def finished(command: list[str], out: Path) -> tuple[float, list[tuple[float, float]]]:
    """Run a command to its end; its seconds, and its memory in MB by the seconds when it was looked at."""
    began, memory = time.monotonic(), []
    with open(out.with_suffix(".txt"), "ab") as said:
        process = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said)
    while (code := process.poll()) is None:
        memory.append((time.monotonic() - began, memory_MB(process.pid)))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=LOOKS_APART_S)
    if code:
        raise SystemExit(f"{' '.join(command)} ended with code {code}; see {out.with_suffix('.txt')}")
    return time.monotonic() - began, memory


def main() -> None:
    args = parse()
    args.work.mkdir(parents=True, exist_ok=True)
    if any(args.work.glob("*.npz*")):
        raise SystemExit(f"{args.work} holds an earlier soak; choose another --work")
    if args.scheme != "plain":
        learned = args.work / "learned.npz"
        finished([sys.executable, "-m", "kstep", "learn", args.smiles, "--name", "soak", "--out",
                  str(learned.resolve()), "--num-workers", "2", "--seed", str(args.seed)], learned)
    pilot, quiet, noisy = (args.work / f"{name}.npz" for name in ("pilot", "quiet", "noisy"))
    before = cpu_s(os.getpid())
    start_s, _ = finished(command_for(args, pilot.with_name("start.npz"), 1), pilot)
    start_cpu_s = cpu_s(os.getpid()) - before
    step_s = max(finished(command_for(args, pilot, PILOT_STEPS), pilot)[0] - start_s, 0.1) / PILOT_STEPS
    steps = max(PILOT_STEPS, int(QUIET_SHARE * args.minutes * 60 / step_s))
    print(f"{step_s * 1e3:.0f} ms a macro-step: {steps} of them", flush=True)
    quiet_s, quiet_memory = finished(command_for(args, quiet, steps), quiet)
    patient = disturbed(command_for(args, noisy, steps), noisy, args.faults, 60 * args.fault_minutes,
                        10 * quiet_s + 600, random.Random(args.seed), args.most_faults, start_cpu_s)
    found = judge(quiet, noisy, patient, quiet_memory)
    write_json_compact(args.out, {**found, "minutes": (time.monotonic() - patient.began + quiet_s) / 60,
                                  "scheme": args.scheme, "steps": steps, **machine(), **provenance()})
    for key, value in found.items():
        print(f"{key:26} {value}")
    print(f"-> {args.out}")
    if not found["holds"]:
        raise SystemExit(f"it does not hold: {', '.join(found['fails'])}")


if __name__ == "__main__":
    main()
