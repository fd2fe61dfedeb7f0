"""The configs and molecule lists that come with the package, for callers whose own folder has none."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def folder_of(kind: str) -> Path:
    """The shipped folder 'configs' or 'data': inside an installed package, else at the repository's root."""
    inside = PACKAGE / kind
    return inside if inside.is_dir() else PACKAGE.parents[1] / kind


def find_config(path: str | Path) -> Path:
    """`path` where that is a file; else the shipped config of that name: configs/qm.yaml, qm.yaml, qm."""
    return _find(path, "configs", ".yaml")


def find_molecules(path: str | Path) -> Path:
    """`path` where that is a file; else the shipped SMILES file of that name: data/qm_molecules.smi, molecules.smi."""
    return _find(path, "data", ".smi")


def _find(path: str | Path, kind: str, suffix: str) -> Path:
    path = Path(path)
    if path.is_file() or path.is_absolute() or path.parent not in (Path(), Path(kind)):
        return path
    ours = folder_of(kind) / path.with_suffix(suffix).name
    return ours if path.suffix in ("", suffix) and ours.is_file() else path
