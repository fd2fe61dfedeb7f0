"""What every numbered script shares: arguments, logging, seeds, devices, provenance."""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

# One thread per true call: two are many times slower on a shared machine, and BLAS reads
# these variables only once, at import.
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

from kstep.config import MOST  # noqa: E402
from kstep.errors import PhysicsError, UserError  # noqa: E402
from kstep.files import write_json_atomic  # noqa: E402, F401 (scripts take it from here)
from kstep.processes import physical_cores  # noqa: E402

log = logging.getLogger("kstep")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults and keeps the line breaks of a script's docstring; no '(default: None)'."""

    def _get_help_string(self, action):
        if action.default is None or action.default is False or action.default == [] or action.required:
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """A usage error is one sentence and exit code 2."""

    def error(self, message):
        self.exit(2, f"error: {message}; {self.prog} --help lists every flag\n")


def make_parser(description: str) -> argparse.ArgumentParser:
    """An ArgumentParser in the house style."""
    return Parser(description=description, formatter_class=HelpFormatter)


def add_common_arguments(parser: argparse.ArgumentParser, *, seed: bool = True, device: bool = False,
                         overrides: bool = False) -> None:
    """Add --seed, --device, --set and --log-level where they make sense."""
    if seed:
        parser.add_argument("--seed", type=non_negative_int, default=0, help="seed of every random number")
    if device:
        parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto",
                            help="where the network runs; auto takes a GPU when there is one")
    if overrides:
        parser.add_argument("--set", action="append", dest="assignments", metavar="KEY=VALUE", default=[],
                            help="override one key of the YAML config; may be repeated")
    parser.add_argument("--log-level", choices=["debug", "info", "warning", "error"], default="info",
                        help="how much to print")


def _number(kind: type, text: str, fits: Callable[[float], bool], wanted: str):
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not fits(value):
        raise argparse.ArgumentTypeError(f"{text} is not a {wanted}")
    return value


def positive_int(text: str) -> int:
    return _number(int, text, lambda n: 1 <= n <= MOST, f"whole number >= 1{_most(text)}")


def non_negative_int(text: str) -> int:
    return _number(int, text, lambda n: 0 <= n <= MOST, f"whole number >= 0{_most(text)}")


def _most(text: str) -> str:
    return f" and <= {MOST}" if text.isdigit() and int(text) > MOST else ""


def positive_float(text: str) -> float:
    return _number(float, text, lambda x: 0 < x < float("inf"), "number > 0")


def non_negative_float(text: str) -> float:
    return _number(float, text, lambda x: 0 <= x < float("inf"), "number >= 0")


def setup_logging(level: str = "info") -> None:
    """Log to stderr, one line each."""
    logging.basicConfig(level=level.upper(), format="%(levelname).1s %(message)s", stream=sys.stderr, force=True)
    for noisy in ("matplotlib", "pymbar", "jax", "absl", "fontTools"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def run_script(main: Callable[[], int | None]) -> None:
    """Run a script's main: a user's mistake becomes one sentence and exit code 2."""
    try:
        code = main() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except PhysicsError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 3
    except (OSError, MemoryError) as error:  # a folder that cannot be written, a name too long, no space, no memory
        log.debug("where it happened", exc_info=True)
        where = f"{error.filename}: " if getattr(error, "filename", None) else ""
        print(f"error: {where}{getattr(error, 'strerror', None) or error or 'not enough memory'}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted; finished work is on disk, --resume continues where the script has it",
              file=sys.stderr)
        code = 130
    sys.exit(code)


def pick_device(wanted: str) -> str:
    """'cpu' or 'cuda'; asking for an absent GPU costs one warning, not the run."""
    if wanted == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if wanted == "cuda":
        log.warning("no CUDA GPU found; running on the CPU")
    return "cpu"


def read_json(path: str | Path):
    """Read JSON; a missing or broken file is a UserError."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run the stage that writes it first") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder, not a JSON file") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise UserError(f"{path} is not valid JSON; delete it and run its stage again") from None


def git_commit() -> str:
    """Short hash of the code that runs, with '+' when the tree has changes; '' outside git."""
    here = Path(__file__).resolve().parent
    try:
        head = subprocess.run(["git", "-C", str(here), "rev-parse", "--short", "HEAD"],
                              capture_output=True, text=True, timeout=10)
        dirty = subprocess.run(["git", "-C", str(here), "status", "--porcelain", "-uno"],
                               capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    if head.returncode:
        return ""
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def provenance() -> dict:
    """Versions and commit for the metadata of every file."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {"python": sys.version.split()[0]}
    for package in ("kstep", "numpy", "torch", "openmm", "rdkit", "tblite", "xtb", "pyscf", "ase"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {"versions": versions, "git_commit": git_commit()}


def machine() -> dict:
    """The machine a measurement ran on, in words."""
    import platform

    model = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [row.split(":", 1)[1].strip() for row in cpuinfo.read_text().splitlines()
                 if row.startswith("model name")]
        model = names[0] if names else ""
    return {"cpu": model or platform.processor(), "cores": physical_cores(),
            "system": platform.system()}


def add_evaluation_arguments(parser: argparse.ArgumentParser, *, level: str, runs_flag: str, baseline: str, runs: str,
                             out_dir: str) -> None:
    """Flags that the MM and the QM evaluation have in common; `runs_flag` is --hybrid-runs or --hybrid."""
    parser.add_argument("--baseline", type=Path, default=Path(baseline),
                        help=f"folder (or one file) of plain {level} trajectories; {baseline}/<name>/*.npz")
    parser.add_argument(runs_flag, type=Path, default=Path(runs), dest="runs",
                        help="folder (or one file) of hybrid trajectories; plain ones in it are controls")
    parser.add_argument("--out-dir", type=Path, default=Path(out_dir),
                        help="where metrics.json, plots/ and report.html go")
    parser.add_argument("--rdf-max", type=positive_float, default=1.0, help="longest atom-atom distance, nm")
    parser.add_argument("--rdf-bins", type=positive_int, default=200, help="bins of the distance histogram")
    add_common_arguments(parser)
