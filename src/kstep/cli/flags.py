"""Flags in the house style: the parser, its numbers, and what several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from kstep.config import MOST
from kstep.restraints import parse_restraint

T = TypeVar("T")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults and keeps the line breaks of a description; no '(default: None)'."""

    def _get_help_string(self, action):
        if action.default is None or action.default is False or action.default == [] or action.required:
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """A usage error is one sentence and exit code 2."""

    def error(self, message):
        """Leave with that sentence."""
        self.exit(2, f"error: {message}; {self.prog} --help lists every flag\n")


def make_parser(description: str, prog: str | None = None) -> argparse.ArgumentParser:
    """An ArgumentParser in the house style."""
    return Parser(prog=prog, description=description, formatter_class=HelpFormatter)


def add_common_arguments(parser: argparse.ArgumentParser, *, seed: bool = True, device: bool = False,
                         overrides: bool = False) -> None:
    """Add --seed, --device, --set and --log-level where they make sense."""
    common = parser.add_argument_group("of every command" if seed else "output")
    if overrides:
        common.add_argument("--set", action="append", dest="assignments", metavar="KEY=VALUE", default=[],
                            help="override one key of the YAML config; may be repeated")
    if seed:
        common.add_argument("--seed", type=non_negative_int, default=0, help="seed of every random number")
    if device:
        common.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto",
                            help="where the network runs; auto takes a GPU when there is one")
    if overrides or seed:
        common.add_argument("--allow-calculator", action="append", default=[], metavar="MODULE:NAME",
                            help="backend ase: let this class or function be run, whose package is not known for "
                                 "calculators; may be repeated")
    common.add_argument("--log-level", choices=["debug", "info", "warning", "error"], default="info",
                        help="how much to print")


def add_overwrite(parser) -> None:
    """Add --overwrite, without which nothing that lies there already is replaced."""
    parser.add_argument("--overwrite", action="store_true",
                        help="begin anew; what is there already is kept as <name>.backup-1, -2 ...")


def add_overwrite_of_result(parser) -> None:
    """Add --overwrite where a command replaces its own earlier result, and nothing else, without being asked."""
    parser.add_argument("--overwrite", action="store_true",
                        help="write although something else lies there; it is kept as <name>.backup-1, -2 ...")


def add_subject(parser, name: str, numbered: str | None, **options) -> None:
    """What a command is about: the first word after `kstep <command>`, a flag in the numbered script.

    Without a default it must be given.
    """
    needed = "default" not in options
    if numbered is None:
        parser.add_argument(name.replace("-", "_"), nargs=None if needed else "?", metavar=name.upper(), **options)
    else:
        parser.add_argument(f"--{name}", required=needed, **options)


def add_structure(group, *, temperature: bool = True, exclusive=None) -> None:
    """Flags of whatever starts from a molecule that is not prepared yet: its structure, electrons and temperature.

    exclusive: the group that --structure goes into where no SMILES may stand beside it.
    """
    beside = "alone, or beside the SMILES that they are of" if exclusive is None else "instead of --smiles"
    (exclusive or group).add_argument(
        "--structure", type=Path, metavar="FILE", help="one's own geometries, each a start: .xyz .extxyz .sdf .mol "
        f".pdb, in angstrom, with all hydrogens; {beside}")
    group.add_argument("--charge", type=int, help="of the molecule, e, where its file does not say it (default: 0)")
    group.add_argument("--multiplicity", type=positive_int,
                       help="spin multiplicity 2S+1 of the molecule (default: the file's, else by unpaired electrons)")
    if temperature:
        group.add_argument("--temperature", type=positive_float, dest="temperature_K", metavar="K",
                           help="of the run, K (default: the config's)")


def add_physics(parser, numbered: str | None):
    """The molecule of a study and its true physics; returns the group."""
    what = parser.add_argument_group("molecule and true physics")
    add_subject(what, "molecule", numbered, default=None,
                help="prepared folder such as data/raw/ethanol, a SMILES, or a structure file")
    what.add_argument("--name", help="name of the molecule of a SMILES (default: its formula) or of a structure file "
                                     "(default: the file's)")
    add_structure(what, temperature=False)
    physics = what.add_mutually_exclusive_group()
    physics.add_argument("--qm-config", type=Path, default=Path("configs/qm.yaml"), help="YAML of the QM method")
    physics.add_argument("--md-config", type=Path, help="YAML of OpenMM runs: the force field is the true physics then")
    add_solvent(what)
    return what


def add_solvent(group) -> None:
    """Add --solvent and --solvation-model, keys of the QM config that a command samples from."""
    group.add_argument("--solvent", help="implicit solvent, such as water; none: the gas phase (default: the config's)")
    group.add_argument("--solvation-model", help="alpb or gbsa (xTB); smd, cpcm or iefpcm (PySCF) (default: alpb with "
                       "tblite, gbsa with xtb, smd with PySCF)")


def solvent_of(args) -> dict[str, str]:
    """The keys of the QM config that those flags give."""
    keys = ("solvent", "solvation_model")
    return {key: value for key in keys if (value := getattr(args, key, None)) is not None}


def add_scheduler(group) -> None:
    """Add --scheduler, a key of the config of the true physics."""
    group.add_argument("--scheduler", metavar="ADDRESS", help="make the true calls on the workers of a Dask cluster: "
                       "its scheduler's tcp://host:port, or its scheduler file (default: on this machine)")


def add_restraint_flag(group, parse: Callable[[str], Any] = parse_restraint) -> None:
    """--restrain, the key `restraints` of a config."""
    group.add_argument("--restrain", action="append", dest="restraints", type=of(parse),
                       metavar="KIND:ATOMS:CENTRE:K",
                       help="hold a distance (nm, kJ/mol/nm^2), angle or dihedral (deg, kJ/mol/rad^2) near its centre, "
                            "such as dihedral:0-1-2-3:60:200, atoms from 0; may be repeated")


def of(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """A flag's type from what raises ValueError with a sentence."""
    def parsed(text: str):
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parsed


def filled(kind: type[T], args, **others) -> T:
    """A settings object: `others`, and each of its fields that a flag is named after; lists become tuples."""
    names = {f.name for f in fields(kind)} - set(others)  # type: ignore[arg-type]  # T is a dataclass
    given = {name: value for name, value in vars(args).items() if name in names}
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}, **others)


def _number(kind: type, text: str, fits: Callable[[float], bool], wanted: str):
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not fits(value):
        raise argparse.ArgumentTypeError(f"{text} is not a {wanted}")
    return value


def positive_int(text: str) -> int:
    """A flag's whole number of 1 or more."""
    return _number(int, text, lambda n: 1 <= n <= MOST, f"whole number >= 1{_most(text)}")


def bins(text: str) -> int:
    """A flag's number of bins: 2 or more, and no more than anyone can look at."""
    return _number(int, text, lambda n: 2 <= n <= 1000, "whole number from 2 to 1000")


def non_negative_int(text: str) -> int:
    """A flag's whole number of 0 or more."""
    return _number(int, text, lambda n: 0 <= n <= MOST, f"whole number >= 0{_most(text)}")


def _most(text: str) -> str:
    return f" and <= {MOST}" if text.isdigit() and (len(text) > 10 or int(text) > MOST) else ""


def positive_float(text: str) -> float:
    """A flag's finite number above 0."""
    return _number(float, text, lambda x: 0 < x < float("inf"), "number > 0")


def share(text: str) -> float:
    """A flag's share of a whole: above 0, and 1 at most."""
    return _number(float, text, lambda x: 0 < x <= 1, "number above 0 and up to 1")


def finite_float(text: str) -> float:
    """A flag's finite number."""
    return _number(float, text, lambda x: abs(x) < float("inf"), "number")


def non_negative_float(text: str) -> float:
    """A flag's finite number of 0 or more."""
    return _number(float, text, lambda x: 0 <= x < float("inf"), "number >= 0")
