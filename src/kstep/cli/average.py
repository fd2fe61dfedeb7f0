"""Averages of observables over a run, each with its error and its effective samples.

    kstep average ethanol.npz --distance 0-2 --angle 0-1-2 --radius-of-gyration
    kstep average ethanol.npz --function my_observable.py:end_to_end

A function gets positions (F,N,3) in nm and returns one value, or one row, per frame.  The file or module that it stands
in is executed on this machine, with your rights: give none that you would not run.
"""

from __future__ import annotations

import argparse
import logging
import pkgutil
from collections.abc import Callable
from pathlib import Path

from kstep.cli.flags import add_common_arguments, add_overwrite_of_result
from kstep.cli.populations import add_runs, check_out
from kstep.errors import UserError
from kstep.outputs import json_with
from kstep.restraints import parse_atoms

log = logging.getLogger("kstep")


def add_flags(parser, numbered: str | None = None) -> None:
    """Flags of `kstep average`."""
    add_runs(parser)
    what = parser.add_argument_group("observables; atoms are counted from 0")
    what.add_argument("--distance", type=_atoms("distance"), action="append", default=[], metavar="A-B", help="nm")
    what.add_argument("--angle", type=_atoms("angle"), action="append", default=[], metavar="A-B-C",
                      help="degrees, at B")
    what.add_argument("--radius-of-gyration", action="store_true", help="nm, by mass")
    what.add_argument("--dipole", action="store_true", help="its length in debye, of runs that stored it")
    what.add_argument("--function", action="append", default=[], metavar="FILE.py:NAME|MODULE:NAME",
                      help="your own, of positions (F,N,3) nm; the file is executed")
    what.add_argument("--one-by-one", action="store_true", help="--function takes the positions (N,3) of one frame")
    parser.add_argument("--out", type=Path, help="JSON file to write as well")
    add_overwrite_of_result(parser)
    add_common_arguments(parser, seed=False)


def _atoms(kind: str) -> Callable[[str], tuple[int, ...]]:
    def read(text: str) -> tuple[int, ...]:
        try:
            return parse_atoms(kind, text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def load_function(text: str) -> Callable:
    """The function of 'file.py:name' or 'module:name', whose code is executed."""
    where, _, name = text.rpartition(":")
    if not where or not name:
        raise UserError(f"--function {text} must read file.py:name or module:name")
    path = Path(where)
    try:
        if path.suffix == ".py":
            if not path.is_file():
                raise UserError(f"--function {text}: {path} does not exist")
            namespace: dict = {"__name__": path.stem, "__file__": str(path)}
            exec(compile(path.read_bytes(), str(path), "exec"), namespace)
            if name not in namespace:
                raise UserError(f"--function {text}: {path} has no '{name}'")
            function = namespace[name]
        else:
            function = pkgutil.resolve_name(text)
    except UserError:
        raise
    except Exception as error:  # whatever the user's code does when it is loaded
        raise UserError(f"--function {text} cannot be loaded ({type(error).__name__}: {error})") from None
    if not callable(function):
        raise UserError(f"--function {text} is no function")
    return function


def observables(args, n_atoms: int) -> dict[str, Callable | str]:
    """What the flags ask for, by name; UserError for an atom that is not there, and where nothing is asked for."""
    from kstep.analysis.measure.observables import angle, distance

    chosen: dict[str, Callable | str] = {}
    for word, make, rows in (("distance", distance, args.distance), ("angle", angle, args.angle)):
        for atoms in rows:
            if max(atoms) >= n_atoms:
                raise UserError(f"--{word} names atom {max(atoms)}, and the last of the run's {n_atoms} atoms is "
                                f"{n_atoms - 1}")
            chosen[f"{word} {'-'.join(map(str, atoms))} / {'nm' if word == 'distance' else 'deg'}"] = make(*atoms)
    if args.radius_of_gyration:
        chosen["radius of gyration / nm"] = "radius_of_gyration"
    if args.dipole:
        chosen["dipole / D"] = "dipole"
    chosen |= {text: load_function(text) for text in args.function}
    if not chosen:
        raise UserError("say what is to be averaged: --distance, --angle, --radius-of-gyration, --dipole or --function")
    return chosen


def run(args) -> None:
    """Print a line for each observable, write the JSON file."""
    from kstep.analysis.measure.averages import gather
    from kstep.analysis.measure.observables import observe
    from kstep.analysis.show.populations import format_averages
    from kstep.files import write_json_atomic
    from kstep.schemas import load_trajectory

    files = {f"--function {text}": text.rpartition(":")[0] for text in args.function if ".py:" in text}
    check_out(args, json_with("effective_samples", "r_hat", of_each=True), **files)
    trajectories = [load_trajectory(path) for path in args.runs]
    chosen = observables(args, len(trajectories[0].atom_types))
    ensemble = gather(trajectories, args.temperature_K)
    found = {name: observe(ensemble, each, one_by_one=args.one_by_one) for name, each in chosen.items()}
    print(format_averages(found))
    if args.out is not None:
        write_json_atomic(args.out, {name: each.as_dict() for name, each in found.items()})
        log.info("averages -> %s", args.out)
