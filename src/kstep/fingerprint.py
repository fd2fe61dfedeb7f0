"""What a resumed run must share with its beginning: nested settings, compared leaf by leaf, and both values shown.

Everything that makes the energy surface and the dynamics belongs into a fingerprint; how long a run is does not, so
that more steps or a larger aim go on with what is there.
"""

from __future__ import annotations

import hashlib
import json
import logging
from typing import Any

from kstep.errors import UserError

MOST_SHOWN = 5  # changes in a sentence
NOT_THERE = "not there"
LONGEST = 60  # characters of a value in it

log = logging.getLogger("kstep")


def as_written(fingerprint: dict[str, Any]) -> dict[str, Any]:
    """The fingerprint as it comes back from a file."""
    return json.loads(json.dumps(fingerprint))


def digest(data: str | bytes) -> str:
    """What stands in a fingerprint for a text as long as a file."""
    return "sha256 " + hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def leaves(value: Any, name: str = "") -> dict[str, Any]:
    """{'physics.charge': 0, 'physics.masses.3': 1.008, ...} of a nested mapping; an empty one is a leaf itself."""
    if not isinstance(value, dict | list) or not value:
        return {name: value}
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    found: dict[str, Any] = {}
    for key, inner in entries:
        found |= leaves(inner, f"{name}.{key}" if name else str(key))
    return found


def changes(written: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    """'physics.charge was 0 and is 1' for each leaf that differs.

    A key of the top level that only one of the two has is left out: another version wrote it, or did not yet.  So is
    one below it that is null, which stands for what was done before there was such a key.
    """
    both = written.keys() & asked.keys()
    there, now = (leaves({key: each[key] for key in each if key in both}) for each in (written, as_written(asked)))
    return [f"{key} was {_shown(there, key)} and is {_shown(now, key)}" for key in {**there, **now}
            if there.get(key) != now.get(key) or ((key in there) != (key in now) and _is_in_a_list(key))]


def _is_in_a_list(key: str) -> bool:
    return key.rpartition(".")[2].isdecimal()


def _shown(values: dict[str, Any], key: str) -> str:
    if key not in values:
        return NOT_THERE
    text = values[key] if isinstance(values[key], str) and values[key] else json.dumps(values[key])
    return text if len(text) <= LONGEST else text[:LONGEST] + "..."


def check_same(what: str, written: dict[str, Any], asked: dict[str, Any], way_out: str) -> None:
    """UserError where `asked` differs from what was `written`: '<what> with other settings (...); <way_out>'.

    Where there are keys that only one of the two has, another version may have written it.

    What an earlier version did not write down cannot be compared, which is said aloud.
    """
    found = changes(written, asked)
    if found:
        more = f" and {len(found) - MOST_SHOWN} more" if len(found) > MOST_SHOWN else ""
        version = ", as by another version of kstep, which could go on with it" if any(
            NOT_THERE in change for change in found) else ""
        raise UserError(f"{what} with other settings ({', '.join(found[:MOST_SHOWN])}{more}){version}; {way_out}")
    unknown = sorted(asked.keys() - written.keys())
    if unknown:
        log.warning("%s by an earlier version, which did not write down its %s: that it is the same is not checked",
                    what, ", ".join(unknown))
