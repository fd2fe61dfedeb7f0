"""Settings that a batch takes from its flags or from the environment: --max-jobs, or else MAX_JOBS.

A setting is a field of a dataclass, declared by `setting`: how its text is read, its default, and what it is.  A reader
gets the text and returns the value, or raises ValueError with what follows "NAME is 'text'" in the error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from kstep.errors import UserError
from kstep.shipped import find_config, find_molecules

T = TypeVar("T")
NUMBER = "[1-9][0-9]{0,8}"


@dataclass(frozen=True)
class Kind:
    """How a setting's text is read, and what its flag takes: one word or `many`, one of `words`, 1 where none."""

    read: Callable[[str], Any]
    many: bool = False
    words: tuple[str, ...] = ()
    alone: str | None = None


def setting(kind: Kind, default: str | None, words: str, usual: str = "") -> Any:
    """A field that is a setting; default None: whatever __post_init__ makes of it, which `usual` describes."""
    return field(default=None, metadata={"kind": kind, "default": default, "words": words,
                                         "usual": usual or default or "none"})


def declared(kind: type) -> list[Field]:
    """The settings of a dataclass."""
    return [each for each in fields(kind) if "kind" in each.metadata]


def add_settings(parser, kind: type) -> None:
    """A flag for each setting of a dataclass; what it stands for is read by `filled_from`."""
    group = parser.add_argument_group("settings", "each also an environment variable, which its flag outdoes")
    for each in declared(kind):
        takes, variable = each.metadata["kind"], each.name.upper()
        parsing: dict[str, Any] = {"nargs": "+"} if takes.many else {}
        if takes.alone is not None:
            parsing = {"nargs": "?", "const": takes.alone}
        group.add_argument(f"--{each.name.replace('_', '-')}", **parsing,
                           metavar="{" + ",".join(takes.words) + "}" if takes.words else variable,
                           help=f"{each.metadata['words']} (variable {variable}; default: {each.metadata['usual']})")


def filled_from(kind: type[T], flags: Mapping[str, Any], environment: Mapping[str, str]) -> T:
    """The dataclass with every setting read: from its flag, its variable (empty: not set), or its default.

    UserError names the one that is nonsense.
    """
    values = {}
    for each in declared(kind):
        flag, variable = flags.get(each.name), each.name.upper()
        name, text = (f"--{each.name.replace('_', '-')}", flag) if flag is not None else (
            variable, environment.get(variable) or each.metadata["default"])
        if isinstance(text, list):
            text = " ".join(text)
        if text is not None:
            try:
                values[each.name] = each.metadata["kind"].read(text)
            except ValueError as error:
                raise UserError(f"{name} is '{text}'{error}") from None
    return kind(**values)


def _whole(text: str) -> int:
    if not re.fullmatch(NUMBER, text):
        raise ValueError("; it must be a whole number of 1 or more")
    return int(text)


def _wholes(text: str) -> tuple[int, ...]:
    if not re.fullmatch(rf"\s*{NUMBER}(\s+{NUMBER})*\s*", text):
        raise ValueError("; it must be whole numbers of 1 or more, separated by blanks")
    return tuple(map(int, text.split()))


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split())
    if any(name.startswith("-") for name in names):
        raise ValueError("; no name begins with a dash")
    return names


def _part(text: str) -> tuple[int, int]:
    found = re.fullmatch(rf"({NUMBER})/({NUMBER})", text)
    if not found or int(found[1]) > int(found[2]):
        raise ValueError("; it must read N/M, such as 3/20, the third of twenty parts")
    return int(found[1]), int(found[2])


def _path(text: str) -> Path:
    return Path("." if text.startswith("-") else "", text)  # which no program may take for a flag


def _file(find: Callable[[Path], Path]) -> Callable[[str], Path]:
    def read(text: str) -> Path:
        path = _path(text)
        if not find(path).is_file():
            raise ValueError(", which is not a file")
        return path

    return read


def _folder(text: str) -> Path:
    if not Path(text).is_dir():
        raise ValueError(", which is not a folder")
    return _path(text)


def choice(*words: str) -> Kind:
    """One of some words."""
    def read(text: str) -> str:
        if text not in words:
            raise ValueError(f"; it must be one of {' '.join(words)}")
        return text

    return Kind(read, words=words)


WHOLE, WHOLES, NAMES, PART, PATH = Kind(_whole), Kind(_wholes, many=True), Kind(_names, many=True), Kind(_part), \
    Kind(_path)
TEXT = Kind(str)
FILE, CONFIG, MOLECULES, FOLDER = Kind(_file(Path)), Kind(_file(find_config)), Kind(_file(find_molecules)), \
    Kind(_folder)
SWITCH = Kind(lambda text: choice("0", "1").read(text) == "1", words=("0", "1"), alone="1")
