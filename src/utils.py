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
    return {"cpu": model or platform.processor(), "cores": len(os.sched_getaffinity(0)),
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


def add_hybrid_arguments(parser: argparse.ArgumentParser, *, physics_config: str, physics_default: str) -> None:
    """Flags that the MM and the QM hybrid script have in common; unset ones leave the YAML's value."""
    parser.add_argument("--checkpoint", help="network from 04_train.py; not needed for --scheme plain or --learn")
    parser.add_argument(physics_config, default=physics_default, dest="physics_config",
                        help="YAML of the true physics and the baseline temperature (K) and dt_fs")
    parser.add_argument("--molecule", help="prepared folder such as data/raw/ethanol")
    parser.add_argument("--smiles", help="instead of --molecule: a SMILES string, prepared on the spot")
    parser.add_argument("--name", help="name of the molecule of --smiles (default: that of the output file)")
    parser.add_argument("--learn", action="store_true",
                        help="metropolis: first learn the network, from the true calls of this run alone")
    parser.add_argument("--out", required=True, help="trajectory file to write (.npz)")
    parser.add_argument("--hybrid-config", default="configs/hybrid.yaml", help="YAML of everything below")
    parser.add_argument("--model-config", help="check that the checkpoint was built from this model YAML; with "
                        "--learn: the network to learn (default: configs/model_pair_mlp.yaml)")
    parser.add_argument("--scheme", choices=["metropolis", "impulse", "checked", "jump", "plain"],
                        help="how k steps are made and judged")
    parser.add_argument("--k-steps", type=positive_int, help="baseline timesteps per true call")
    parser.add_argument("--dt-fs", type=positive_float, help="timestep, fs")
    parser.add_argument("--steps", type=positive_int, help="macro-steps = true calls per replica")
    parser.add_argument("--burn-in-steps", type=non_negative_int, help="macro-steps before them, never judged")
    parser.add_argument("--replicas", type=positive_int, help="chains that step together")
    parser.add_argument("--hydrogen-mass", type=positive_float, dest="hydrogen_mass_Da",
                        help="metropolis: mass of the sampler's hydrogens, Da; the ensemble stays exact")
    parser.add_argument("--tempering", type=positive_float, nargs="+", dest="tempering_K", metavar="K",
                        help="metropolis: ladder of temperatures, K, the target first; rungs exchange configurations")
    parser.add_argument("--tune", action="store_true", default=None,
                        help="metropolis: choose the timestep and the length by measurement before production")
    parser.add_argument("--thermostat", choices=["none", "langevin"], help="around all but metropolis; none is NVE")
    parser.add_argument("--project-residual", action="store_const", const=True,
                        help="impulse: kicks change no bond length or angle distance; longer k, no exact ensemble")
    parser.add_argument("--delta-scale", type=non_negative_float, help="scales the learned correction; 0: no network")
    parser.add_argument("--max-attempts", type=positive_int, help="jumps tried before plain steps take over")
    parser.add_argument("--initial-md", help="start from frames of this trajectory.npz instead of conformers")
    parser.add_argument("--frame", type=int, help="start every replica from this frame of --initial-md")
    parser.add_argument("--labels", help="past_tolerance learn: dataset the network was trained on, so that it is kept")
    parser.add_argument("--learn-config", default="configs/learn.yaml", help="YAML of learning: with --learn, or past_tolerance learn")
    parser.add_argument("--num-workers", type=positive_int, help="processes for true calls (default: all cores)")
    parser.add_argument("--resume", action="store_true", help="continue from the last restart file")
    add_common_arguments(parser, device=True, overrides=True)


def relearner(args, run):
    """What a checked run calls past its tolerances to have its network trained; None for other runs."""
    from kstep.config import load_config

    if run.hybrid.past_tolerance != "learn":
        if args.labels:
            raise UserError("--labels are what a network learns from; set past_tolerance: learn")
        return None
    from kstep.learning.config import LearnConfig
    from kstep.training.relearn import Relearner

    return Relearner(run.checkpoint, run.molecule, load_config(LearnConfig, args.learn_config), method=run.method,
                     dt_fs=run.hybrid.dt_fs, temperature_K=run.hybrid.temperature_K, seed=run.seed,
                     earlier=args.labels)


def hybrid_overrides(args) -> dict:
    """The flags of `add_hybrid_arguments` that are keys of a HybridConfig."""
    from kstep.config import parse_assignments

    keys = ("scheme", "k_steps", "dt_fs", "steps", "burn_in_steps", "replicas", "thermostat", "delta_scale",
            "max_attempts", "hydrogen_mass_Da", "tempering_K", "tune", "project_residual")
    given = {key: getattr(args, key) for key in keys if getattr(args, key) is not None}
    return {**parse_assignments(args.assignments), **given}
