"""The sections of benchmarks/gpu.py: what each measures, and how it tells what it did not see."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from running import ROOT, here

ROWS = (16, 64, 256, 1024, 4096, 16384)
COMPILED_ROWS = (1024, 256, 4096, 64, 16384, 16)  # what is compiled for one number is compiled anew for the next
MOST_ROWS = {"cuda": ROWS[-1], "cpu": 256, "quick": 16}  # more eat a CPU's memory and tell nothing new
N_ATOMS = {"cuda": 20, "cpu": 20, "quick": 6}
LEAST_S = {"cuda": 0.4, "cpu": 0.4, "quick": 0.01}  # of each figure of the inner loop
FIELDS = ({"functional": "HF"}, {"functional": "PBE"}, {"functional": "B3LYP", "density_fit": True})  # of PyscfConfig
FIELD_MOLECULE = "CO"
GRADIENT_BAR = 1e-5  # Ha/bohr, the largest component of the difference
MD = {"cuda": {"replicas": 8, "length_ps": 0.5}, "cpu": {"replicas": 2, "length_ps": 0.5},
      "quick": {"replicas": 2, "length_ps": 0.06}}
TRAINING_STEPS = {"cuda": 100, "cpu": 40, "quick": 5}
LARGER_BATCH = 16  # times that of the config, since 32 small molecules leave a GPU idle
OVERLAP = {"cuda": {"--k-steps": 200, "--replicas": 64, "--steps": 20},
           "cpu": {"--k-steps": 20, "--replicas": 16, "--steps": 20},
           "quick": {"--k-steps": 2, "--replicas": 4, "--steps": 2, "--num-workers": 1}}
OVERLAP_TRAINING_STEPS = {"cuda": 200, "cpu": 100, "quick": 5}
PRECISIONS = {"float32": False, "bfloat16": True}  # `amp` of the train config
ENERGY_HEAD = {"energy": True, "jump": False}


def last_words(log: str) -> str:
    """What a failed process said: the last line of a traceback, or that of a script and of the command it called."""
    lines = [line for line in log.splitlines() if line.strip()]
    return ": ".join(lines[-1 if "Traceback" in log else -2:])


@dataclass(frozen=True)
class How:
    """What a section is told."""

    device: str
    quick: bool
    work: Path
    tell: Callable[[dict], None]  # writes down what is known so far

    @property
    def size(self) -> str:
        """By which measurements are as large as they are."""
        return "quick" if self.quick else self.device


def grouped(reasons: dict[str, str]) -> dict[str, list[str]]:
    """{sentence: names of all that it keeps from being seen} of {name: sentence}."""
    out: dict[str, list[str]] = {}
    for name, why in reasons.items():
        out.setdefault(why, []).append(name)
    return out


BY_QUICK = "left out by --quick"
NOT_REACHED = "not reached in the seconds of this section"


def sentence(error: BaseException) -> str:
    """An exception in one line."""
    from kstep.errors import UserError

    first = (str(error).strip().splitlines() or [""])[0]
    return first if isinstance(error, UserError) else f"{type(error).__name__}: {first}"[:300]


def cuda_tests(how: How) -> None:
    """Counts of the tests that need a GPU, names of those that failed."""
    files = [path for path in sorted((ROOT / "tests").glob("test_*.py")) if "mark.cuda" in path.read_text()]
    report = how.work / "cuda_tests.xml"
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "cuda",
                           f"--junitxml={report}", *files], cwd=ROOT)
    if done.returncode not in (0, 1):  # all passed, some failed
        sys.exit(f"pytest ended with exit code {done.returncode}")
    how.tell(counted(report))


def counted(report: Path) -> dict:
    """What a JUnit report of pytest holds: passed, failed, failures by name, and why others were not run."""
    failures, reasons, n = [], {}, 0
    for case in ElementTree.parse(report).iter("testcase"):
        n += 1
        name, skipped = case.get("name"), case.find("skipped")
        if skipped is not None:
            reasons[name] = skipped.get("message", "")
        elif case.find("failure") is not None or case.find("error") is not None:
            failures.append(name)
    return {"passed": n - len(reasons) - len(failures), "failed": len(failures), "failures": failures,
            "unseen": grouped(reasons)}


def gpu4pyscf(how: How) -> None:
    """Energies and gradients of each of FIELDS by PySCF and by GPU4PySCF."""
    from kstep.forces.pyscf import PyscfConfig, gpu_found

    named = {PyscfConfig(**field).method: field for field in FIELDS}
    fields, reasons = dict.fromkeys(named), dict.fromkeys(named, NOT_REACHED)
    for name, field in named.items():
        try:
            if gpu_found():
                fields[name] = agreement(field, ("cpu", "gpu"))
                del reasons[name]
            else:
                reasons[name] = "GPU4PySCF with a CUDA GPU is not here"
        except Exception as error:  # of a driver, or of a kernel that this GPU does not have
            reasons[name] = sentence(error)
        how.tell({"gradient_bar_Ha_per_bohr": GRADIENT_BAR, "fields": fields, "unseen": grouped(reasons)})


def agreement(field: dict, devices: tuple[str, str]) -> dict:
    """Largest difference of two devices of PySCF, in energy (Ha) and in a component of the gradient (Ha/bohr)."""
    import kstep
    from kstep.forces import pyscf
    from kstep.units import NM_PER_BOHR

    molecule = kstep.prepare(FIELD_MOLECULE)  # as the force field has it, far from where gradients vanish
    bohr, answers, seconds = molecule.conformers[0] / NM_PER_BOHR, [], []
    for device in devices:
        settings = pyscf.PyscfConfig(**field, device=device)
        mole = pyscf.build_molecule(molecule.numbers, bohr, settings.basis, molecule.charge, molecule.multiplicity)
        began = time.perf_counter()
        converged, _ = pyscf.converge(pyscf.mean_field(mole, settings))
        answers.append((float(converged.e_tot), pyscf.gradient(converged, settings)))
        seconds.append(time.perf_counter() - began)
    (energy, slope), (other_energy, other_slope) = answers
    apart = float(np.abs(slope - other_slope).max())
    return {"energy_Ha": abs(energy - other_energy), "gradient_Ha_per_bohr": apart, "agrees": apart <= GRADIENT_BAR,
            "largest_gradient_Ha_per_bohr": float(np.abs(slope).max()), "seconds": dict(zip(devices, seconds))}


def networks() -> dict:
    """Architecture -> (YAML, ModelConfig) with an energy head, of every network of the registry."""
    from kstep.config import load_config
    from kstep.models import REGISTRY
    from kstep.models.model_config import ModelConfig

    known = {}
    for path in sorted((ROOT / "configs").glob("model*.yaml")):
        config = load_config(ModelConfig, path, {"heads": ENERGY_HEAD})
        known.setdefault(config.arch, (path, config))
    return {arch: known[arch] for arch in REGISTRY}


def cells() -> Iterator[tuple[str, str, int]]:
    """(architecture, way, rows), what is compiled last: it takes a minute each."""
    from kstep.models import REGISTRY, network_class
    from kstep.models.execution import BUILDERS

    for way in sorted(BUILDERS, key="compiled".__eq__):
        for rows in COMPILED_ROWS if way == "compiled" else ROWS:
            yield from ((arch, way, rows) for arch in REGISTRY if way in network_class(arch).ways)


def inner_loop(how: How) -> None:
    """Microseconds of a step of one replica, as benchmarks/inner_loop.py measures them."""
    import torch

    torch.set_num_threads(1)
    configs, table, build_s = networks(), {}, {}
    reasons = {(arch, way, rows): left_out(way, rows, how) or NOT_REACHED for arch, way, rows in cells()}
    for arch, way, rows in reasons:
        table.setdefault(arch, {}).setdefault(way, {})[str(rows)] = None
    for arch, way, rows in cells():
        if reasons[arch, way, rows] != NOT_REACHED:
            continue
        try:
            table[arch][way][str(rows)], seconds = timed_cell(configs[arch][1], way, rows, how)
            build_s[f"{arch} {way}"] = max(seconds, build_s.get(f"{arch} {way}", 0.0))
            del reasons[arch, way, rows]
        except Exception as error:  # of a compiler, a driver, a memory that is too small; the next way may work
            reasons |= {key: sentence(error) for key, why in reasons.items() if key[:2] == (arch, way) and
                        why == NOT_REACHED}
        if how.device == "cuda":
            gc.collect()  # a network and its recorded launches refer to each other
            torch.cuda.empty_cache()
        how.tell({"n_atoms": N_ATOMS[how.size], "step_us": table, "build_s": build_s, "unseen": by_rows(reasons)})


def left_out(way: str, rows: int, how: How) -> str | None:
    """Why a cell is not even tried."""
    if way == "compiled" and how.size != "cuda":
        return "minutes of compiling are left to a GPU"
    return f"more than {MOST_ROWS[how.size]} rows are left to a GPU" if rows > MOST_ROWS[how.size] else None


def by_rows(reasons: dict[tuple[str, str, int], str]) -> dict[str, list[str]]:
    """`grouped`, with all rows of a way in one name."""
    rows: dict[tuple[str, str], list[int]] = {}
    for (arch, way, n), why in reasons.items():
        rows.setdefault((f"{arch} {way}", why), []).append(n)
    return grouped({f"{name}, {' '.join(map(str, sorted(found)))} rows": why for (name, why), found in rows.items()})


def timed_cell(config, way: str, rows: int, how: How) -> tuple[float, float]:
    """us of a step of one replica, and the seconds until the first force, which compiling and recording take."""
    import inner_loop as bench

    n_atoms = N_ATOMS[how.size]
    net = bench.network(n_atoms, how.device, config, way, rows)
    began = time.perf_counter()
    net.forces(net.native(bench.chain(n_atoms, rows)))
    build_s = time.perf_counter() - began
    return 1e6 * bench.step_s(net, n_atoms, rows, LEAST_S[how.size], 2), build_s


def windows(how: How) -> None:
    """The dataset of `training` and `overlap`, from ethanol's SMILES."""
    from kstep.schemas import load_dataset

    smiles, raw, md = how.work / "ethanol.smi", how.work / "raw", how.work / "md"
    smiles.write_text("CCO ethanol\n")
    here(raw / "ethanol", "src/00_prep_mols.py", "--smiles", smiles, "--out-dir", raw)
    settings = {**MD[how.size], "dt_fs": 0.5, "equilibration_ps": 0.05, "redraw_interval_ps": 0.06, "hot_length_ps": 0}
    here(md / "ethanol/trajectory.npz", "src/01b_run_qm_baselines.py", "--smiles-file", smiles, "--raw", raw, "--out",
         md, *(word for pair in settings.items() for word in ("--set", "=".join(map(str, pair)))))
    here(how.work / "dataset_k8.npz", "src/02_make_dataset.py", "--md-root", md, "--out-root", how.work, "--splits-dir",
         how.work / "splits", "--ks", 8, "--stride", 1, "--split-by", "time")
    arrays, _ = load_dataset(how.work / "dataset_k8.npz")
    how.tell({"windows": len(arrays["k_steps"])})


def check_windows(how: How) -> None:
    """End a section that has nothing to learn from."""
    if not (how.work / "dataset_k8.npz").is_file():
        sys.exit("the section windows made none to learn from")


def training(how: How) -> None:
    """Windows per second of each case of benchmarks/training_throughput.py, by the size of a batch and by `amp`."""
    import training_throughput as bench
    from kstep.config import load_config
    from kstep.models.model_config import ModelConfig
    from kstep.training.train_config import TrainConfig

    check_windows(how)
    table, reasons, todo = {}, {}, []
    for larger in (1, LARGER_BATCH):
        for number, (case, (model, changes, recipe)) in enumerate(bench.CASES.items()):
            bears = load_config(ModelConfig, ROOT / "configs" / model, changes).network_class.bears_bfloat16
            batch = larger * load_config(TrainConfig, ROOT / "configs" / recipe).batch_size
            table.setdefault(case, {})[str(batch)] = dict.fromkeys(PRECISIONS)
            for precision, amp in PRECISIONS.items():
                name = f"{case}, batches of {batch}, {precision}"
                reasons[name] = NOT_REACHED
                if how.quick and number:
                    reasons[name] = BY_QUICK
                elif how.device == "cpu" and larger > 1:
                    reasons[name] = "larger batches are left to a GPU"
                elif amp and not bears:
                    reasons[name] = "this network refuses bfloat16"
                else:
                    todo.append((name, case, batch, precision))
    for name, case, batch, precision in todo:
        try:
            measured = bench.measure(ROOT, case, how.work, TRAINING_STEPS[how.size], how.device,
                                     {"amp": PRECISIONS[precision], "batch_size": batch})
            table[case][str(batch)][precision] = measured["windows_per_s"]
            del reasons[name]
        except RuntimeError as error:
            reasons[name] = last_words(str(error))
        how.tell({"windows_per_s": table, "unseen": grouped(reasons)})


def overlap(how: How) -> None:
    """A metropolis run of ethanol with a network that just learned, with two half-batches in flight and with one."""
    import overlap as bench
    from kstep.models import network_class

    check_windows(how)
    arch, (yaml, _) = next((arch, known) for arch, known in networks().items()
                           if not network_class(arch).bound_to_one_molecule)  # those that a GPU is wanted for
    learned = how.work / "learned"
    here(learned / "last.pt", "src/04_train.py", "--dataset", how.work / "dataset_k8.npz", "--model-config", yaml,
         "--set", f"heads={json.dumps(ENERGY_HEAD)}", "--splits", how.work / "splits/train.json",
         how.work / "splits/val.json", "--max-steps", OVERLAP_TRAINING_STEPS[how.size], "--out-dir", learned,
         "--device", how.device, "--log-level", "warning")
    flags = {"--molecule": how.work / "raw/ethanol", "--checkpoint": learned / "last.pt", "--device": how.device,
             "--scheme": "metropolis", "--dt-fs": 0.5, "--set": "length_law=fixed", "--burn-in-steps": 1,
             **OVERLAP[how.size]}
    words = [str(word) for pair in flags.items() for word in pair]
    found: dict = {"network": arch, "flags": OVERLAP[how.size], "runs": []}
    for row in bench.both(words, how.work / "overlap", 1):
        found["runs"].append(row)
        how.tell(found)


SECTIONS = {"cuda_tests": cuda_tests, "gpu4pyscf": gpu4pyscf, "inner_loop": inner_loop, "windows": windows,
            "training": training, "overlap": overlap}
