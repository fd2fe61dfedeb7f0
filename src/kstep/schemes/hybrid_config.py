"""configs/hybrid.yaml: the keys of every run and those of every registered scheme, in one flat file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from kstep.errors import UserError
from kstep.schemes import SCHEMES
from kstep.schemes.base import RunConfig, Scheme


def _configs() -> list[type[RunConfig]]:
    """The Config of every scheme; one that another is derived from is in it already."""
    every = list(dict.fromkeys(kind.Config for kind in SCHEMES.values()))
    return [one for one in every if not any(issubclass(other, one) for other in every if other is not one)]


class HybridConfig(*_configs()):  # type: ignore[misc]
    """configs/hybrid.yaml: what 06 and 06b do with a network."""

    scheme: Literal[tuple(SCHEMES)] | None = None  # type: ignore[valid-type]


def keys_of_others(scheme: str) -> dict[str, Any]:
    """{key: its default} of what `scheme` does not read: keys that belong to other schemes alone."""
    own = SCHEMES[scheme].Config.model_fields
    return {key: field.default for key, field in HybridConfig.model_fields.items() if key not in own}


def preferred(config: HybridConfig, schemes: Sequence[type[Scheme]]) -> type[Scheme]:
    """The first of `schemes` that reads every key which is not at its default; the first of all where none does."""
    return next((kind for kind in schemes if not foreign_keys(config, kind.name)), schemes[0])


def foreign_keys(config: HybridConfig, scheme: str) -> list[str]:
    """Keys that belong to other schemes than `scheme` alone, and are not at their default."""
    return [key for key, default in keys_of_others(scheme).items() if getattr(config, key) != default]


def refuse_keys_of_others(config: HybridConfig, scheme: str) -> None:
    """UserError where a key that belongs to other schemes alone is not at its default."""
    for key in foreign_keys(config, scheme)[:1]:
        field = HybridConfig.model_fields[key]
        owners = " and ".join(name for name, kind in SCHEMES.items() if key in kind.Config.model_fields)
        raise UserError(f"{key} ({field.description}) belongs to {owners}; {scheme} has no use for it, so leave it "
                        f"{json.dumps(field.default)}")
