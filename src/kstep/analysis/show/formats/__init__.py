"""Trajectories in the formats of other programs; ASE, MDTraj and RDKit write them.

    export(load_trajectory("run.npz"), "run.pdb")

A format is a writer, a function of (trajectory, path), and a line in `FORMATS`; its name is the file's ending.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from kstep.analysis.show.formats.with_ase import ase_writer, to_atoms
from kstep.analysis.show.formats.with_mdtraj import mdtraj_writer, to_mdtraj, write_hdf5, write_pdb
from kstep.analysis.show.formats.with_rdkit import to_rdkit, write_sdf
from kstep.errors import UserError, did_you_mean
from kstep.files import replacing
from kstep.outputs import check_free
from kstep.schemas import Trajectory

__all__ = ["FORMATS", "check_export", "export", "file_of", "format_of", "to_atoms", "to_mdtraj", "to_rdkit",
           "written"]

FORMATS: dict[str, Callable[[Trajectory, Path], None]] = {
    "xyz": ase_writer("xyz"),
    "extxyz": ase_writer("extxyz"),
    "traj": ase_writer("traj"),
    "pdb": write_pdb,
    "dcd": mdtraj_writer("save_dcd"),
    "xtc": mdtraj_writer("save_xtc"),
    "hdf5": write_hdf5,
    "sdf": write_sdf,
}
HOLD_WEIGHTS = {"extxyz", "traj", "sdf"}  # in the info or the properties of a frame
ENDINGS = {"h5": "hdf5"}  # where a format has another one


def format_of(path: Path, format: str | None = None, known: Collection[str] = FORMATS) -> str:
    """The name among `known` that is meant: `format`, or that of the ending of `path`; UserError where it is none."""
    ending = path.suffix.removeprefix(".").lower()
    name = format or ENDINGS.get(ending, ending)
    if name not in known:
        raise UserError(f"{path}: no format is called '{name}'{did_you_mean(name, known)}" if name not in FORMATS else
                        f"{path}: {name} has no place for what conformers are known by; take {', '.join(known)}")
    return name


def file_of(run: Path, format: str, folder: Path | None = None, suffix: str = "") -> Path:
    """Where a run goes in a format: beside it, or in `folder`, under its own name with the format's ending."""
    ending = {name: short for short, name in ENDINGS.items()}.get(format, format)
    return (folder or run.parent) / f"{run.stem}{suffix}.{ending}"


def check_export(trajectory: Trajectory, path: Path, format: str | None = None, *, overwrite: bool = False) -> str:
    """The format that `export` writes; UserError where it would refuse to, but for a library that is missing."""
    name = format_of(path, format)
    if name not in HOLD_WEIGHTS:
        trajectory.check_alike(name)
    if not overwrite:
        check_free(path, overwrite=False)
    return name


def export(trajectory: Trajectory, path: str | Path, format: str | None = None, *, overwrite: bool = False) -> Path:
    """Write all frames, replica after replica, whole or not at all; format: of FORMATS, None: by the ending of `path`.

    Raises UserError for a format that is not known, whose library is not there, or that has no place for the weights
    of a weighted trajectory's frames, and where something lies at `path` (see kstep.outputs).
    """
    path = Path(path)
    name = check_export(trajectory, path, format, overwrite=overwrite)
    return written(path, lambda temporary: FORMATS[name](trajectory, temporary), overwrite=overwrite)


def written(path: Path, write: Callable[[Path], None], *, overwrite: bool) -> Path:
    """`path`, written whole or not at all; UserError where a library is not there, or something lies at `path`."""
    check_free(path, overwrite=overwrite)
    with replacing(path) as temporary:
        try:
            write(temporary)
        except ImportError as missing:
            raise UserError(f"{path}: to write {path.suffix.removeprefix('.')} takes the package '{missing.name}'; "
                            "install it with pip") from None
    return path
