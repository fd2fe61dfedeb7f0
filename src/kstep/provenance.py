"""Which code and which machine made a file."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

from kstep.processes import physical_cores

PACKAGES = ("kstep", "numpy", "torch", "openmm", "rdkit", "tblite", "xtb", "pyscf", "ase")


def git_commit() -> str:
    """Short hash of the code that runs, with '+' when the tree has changes; '' outside git."""
    here = Path(__file__).resolve().parent
    if any(part in ("site-packages", "dist-packages") for part in here.parts):
        return ""  # installed: a repository around it is not this code's
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
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {"versions": versions, "git_commit": git_commit()}


def machine() -> dict:
    """The machine a measurement ran on, in words."""
    model = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [row.split(":", 1)[1].strip() for row in cpuinfo.read_text().splitlines()
                 if row.startswith("model name")]
        model = names[0] if names else ""
    return {"cpu": model or platform.processor(), "cores": physical_cores(),
            "system": platform.system()}
