"""configs/hybrid.yaml: the keys of every run and those of every registered scheme, in one flat file."""

from __future__ import annotations

import json
from typing import Any, Literal

from kstep.errors import UserError
from kstep.schemes import SCHEMES
from kstep.schemes.base import RunConfig


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


def refuse_keys_of_others(config: HybridConfig, scheme: str) -> None:
    """UserError where a key that belongs to other schemes alone is not at its default."""
    for key, default in keys_of_others(scheme).items():
        if getattr(config, key) != default:
            owners = " and ".join(name for name, kind in SCHEMES.items() if key in kind.Config.model_fields)
            meaning = HybridConfig.model_fields[key].description
            raise UserError(f"{key} ({meaning}) belongs to {owners}; {scheme} has no use for it, so leave it "
                            f"{json.dumps(default)}")
