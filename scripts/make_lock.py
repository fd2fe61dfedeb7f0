"""Write requirements.lock: the exact versions, of dependencies and of theirs, that the two commands install.

    python scripts/make_lock.py            from what is installed in this environment (kstep with test and docs)

The environment is one in which all tests pass.  A marker in pyproject.toml (xtb has no wheel for Python 3.12) is
kept, and that of a dependency for other systems too.  PyTorch's own dependencies on CUDA are left to PyTorch.
"""

from __future__ import annotations

import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "requirements.lock"
EXTRAS = ("test", "docs")
OLDEST = "3.11.2"  # the oldest Python that must be able to install them: Debian 12 has it
HEAD = """# Exact versions for scripts/setup_env.sh; ranges are in pyproject.toml.  Written by scripts/make_lock.py.
# PyTorch is installed first and by this pin; its CUDA libraries follow from it.
"""


def wanted() -> list[Requirement]:
    """What pyproject.toml asks for, the extras of developers included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + [line for name in EXTRAS for line in project["optional-dependencies"][name]]
    return [Requirement(line) for line in lines]


def locked() -> list[str]:
    """`name==version; marker` for all that is reached from pyproject.toml, by name."""
    here = default_environment() | {"extra": ""}
    pins: dict[str, str] = {}
    markers: dict[str, set[str]] = {}  # of every way in; '' is one without
    todo = [one for one in wanted() if not one.marker or one.marker.evaluate(here)]
    while todo:
        requirement = todo.pop()
        name, marker = canonicalize_name(requirement.name), str(requirement.marker or "")
        known = name in pins
        markers.setdefault(name, set()).add("" if "extra" in marker else marker)
        try:
            found = distribution(name)
        except PackageNotFoundError:
            extras = ",".join(EXTRAS)
            raise SystemExit(f"error: {requirement} is not installed; run pip install -e '.[{extras}]'") from None
        if Version(found.version) not in requirement.specifier:
            raise SystemExit(f"error: {name} {found.version} is installed, {requirement} is wanted")
        if OLDEST not in SpecifierSet(found.metadata["Requires-Python"] or ""):
            raise SystemExit(f"error: {name} {found.version} does not install under Python {OLDEST}; take an older one")
        if not known or requirement.extras:
            pins[name] = f"{name}=={Version(found.version).public}"
            chosen = requirement.extras or {""}
            todo += [need for need in map(Requirement, found.requires or ())
                     if not need.marker or any(need.marker.evaluate(here | {"extra": extra}) for extra in chosen)]
    return [pins[name] + ("" if "" in markers[name] else f"; {' or '.join(sorted(markers[name]))}")
            for name in sorted(pins)]


def main():
    RESULT.write_text(HEAD + "\n".join(locked()) + "\n")
    print(f"{RESULT}: {len(locked())} packages")


if __name__ == "__main__":
    main()
