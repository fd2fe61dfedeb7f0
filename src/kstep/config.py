"""Typed YAML configurations: every key is checked, an unknown one is answered 'did you mean'."""

from __future__ import annotations

import reprlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from kstep.errors import UserError, did_you_mean
from kstep.restraints import Restraint
from kstep.shipped import find_config

MOST = 2**31 - 1  # what the C++ side of the backends holds


def _no_boolean(value):
    if isinstance(value, bool):
        raise ValueError("input should be a number, not true or false")
    return value


Number = BeforeValidator(_no_boolean)  # YAML's true is Python's 1, which nobody means
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), Number]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False), Number]
Count = Annotated[int, Field(ge=1, le=MOST), Number]
Whole = Annotated[int, Field(ge=0, le=MOST), Number]
Replicas = Annotated[int, Field(ge=1, le=100_000), Number]
Temperature = Annotated[float, Field(gt=0, le=10_000), Number]
Timestep = Annotated[float, Field(ge=0.001, le=5), Number]
Word = Annotated[str, Field(min_length=1, pattern=r"^\S+$")]
Length = Annotated[float, Field(ge=0, le=1e6), Number]  # ps: a microsecond is more than anyone waits for


LONGEST_SHOWN = 200  # characters of what a file says in a sentence about it
_SHORT = reprlib.Repr()  # which looks at few entries of a list, and of those within: aliases may nest them without end
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = LONGEST_SHOWN

# what PyYAML raises for a text that is none: dates, numbers and tags of its own go through Python's conversions
NO_YAML = (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError)
# keys of a BaselineConfig that decide no number: free when a run goes on
HOW_IT_WORKS = {"threads", "call_limit_s", "scheduler"}


class Config(BaseModel):
    """Base of every configuration: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class BaselineConfig(Config):
    """Plain MD of one molecule: what MM and QM baselines share."""

    temperature_K: Temperature = 300.0
    dt_fs: Timestep = 0.5
    friction_per_ps: NonNegative = 5.0  # Langevin friction of the equilibration
    equilibration_ps: Length = 1.0
    length_ps: Length = 10.0  # production at temperature_K, per replica
    redraw_interval_ps: Positive = 0.5  # NVE stretches between velocity redraws
    hot_temperature_K: Temperature = 450.0
    hot_length_ps: Length = 0.0  # extra stretch at hot_temperature_K, per replica
    drift_windows: Whole = 0  # NVE windows for the energy drift, per replica
    drift_length_ps: Positive = 5.0
    save_interval_steps: Count = 1
    replicas: Replicas = 2
    threads: Count = 1  # of a true call
    call_limit_s: Positive | None = None  # after which a true call counts as hung
    scheduler: Word | None = None  # of the Dask cluster that is asked, tcp://host:port or its file; null: this machine
    restraints: tuple[Restraint, ...] | None = None  # kstep.restraints; of hybrids too that name no others

    @property
    def surface(self) -> str:
        """What tells its potential energy surface from another's: the method, and the solvent where there is one."""
        return self.method

    if TYPE_CHECKING:  # the config of a backend has those that mean something to it
        @property
        def backend(self) -> Any: ...
        @property
        def method(self) -> Any: ...
        @property
        def charge(self) -> Any: ...
        @property
        def spin_multiplicity(self) -> Any: ...
        @property
        def platform(self) -> Any: ...
        @property
        def relax_starts(self) -> Any: ...


class ChargedConfig(BaselineConfig):
    """What every config of electrons shares; each backend has its own, which says `backend` and `method`."""

    charge: Annotated[int, Number] | None = None  # null: the molecule's own
    spin_multiplicity: Count | None = None  # null: the molecule's own
    relax_starts: bool = True  # and judge them (kstep.runs.starts)


T = TypeVar("T", bound=Config)


class _StrictSafeLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, of which YAML keeps the last in silence."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise UserError(f"key '{key.value}' is there twice (again in line {key.start_mark.line + 1})")
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path) -> dict:
    """Parse a YAML mapping; UserError names the file and line."""
    path = find_config(path)
    if not path.is_file():
        raise UserError(f"config {path} {'is not a file' if path.exists() else 'does not exist'}")
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictSafeLoader)
    except UserError as error:
        raise UserError(f"config {path}: {error}") from None
    except OSError as error:
        raise UserError(f"config {path} cannot be read ({error.strerror})") from None
    except NO_YAML as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"config {path} is not valid YAML{where}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise UserError(f"config {path} must be a mapping of 'key: value' lines")
    return data


def validate(kind: type[T], data: dict[str, Any], where: str) -> T:
    """Build a config from a mapping; the first problem becomes one sentence."""
    try:
        return kind.model_validate(data)
    except ValidationError as failure:
        problems = failure.errors()  # a key that is misspelt explains the one that is missing
        problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
        key = ".".join(str(part) for part in problem["loc"])
        if not key:  # of the mapping as a whole
            raise UserError(f"{where}: {problem['msg'].removeprefix('Value error, ')}") from None
        if problem["type"] == "extra_forbidden":
            hint = did_you_mean(str(problem["loc"][-1]), _fields_at(kind, problem["loc"][:-1]))
            raise UserError(f"{where}: unknown key '{key[:LONGEST_SHOWN]}'{hint}") from None
        message = problem["msg"].removeprefix("Value error, ")
        message = message[0].lower() + message[1:]
        raise UserError(f"{where}: {key[:LONGEST_SHOWN]} = {_SHORT.repr(problem.get('input'))} is not valid: "
                        + message) from None


def _fields_at(kind: type[BaseModel], keys) -> Any:
    """The keys a config knows below `keys`, e.g. those of `heads`."""
    for key in keys:
        if isinstance(key, str):  # a number is a place in a list
            waiting = [kind.model_fields[key].annotation]
            while not (isinstance(waiting[0], type) and issubclass(waiting[0], BaseModel)):
                waiting += get_args(waiting.pop(0))
            kind = waiting[0]
    return kind.model_fields


def read_settings(path: str | Path | None, overrides: dict[str, Any] | None = None) -> tuple[dict[str, Any], str]:
    """The mapping of `path` (None: empty) under overrides that are not None, and what to call it in an error."""
    data = read_yaml(path) if path is not None else {}
    data.update({k: v for k, v in (overrides or {}).items() if v is not None})
    return data, str(path) if path is not None else "settings"


def load_config(kind: type[T], path: str | Path | None, overrides: dict[str, Any] | None = None) -> T:
    """Read `path` (None: all defaults), then apply overrides that are not None."""
    return validate(kind, *read_settings(path, overrides))


def parse_assignments(pairs: list[str] | None) -> dict[str, Any]:
    """`--set key=value` pairs as a mapping; values are read as YAML."""
    out = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise UserError(f"--set {_SHORT.repr(pair)} must read key=value")
        try:
            out[key.strip()] = yaml.safe_load(value)
        except NO_YAML:
            raise UserError(f"--set {_SHORT.repr(pair)}: the value is not valid YAML") from None
    return out
