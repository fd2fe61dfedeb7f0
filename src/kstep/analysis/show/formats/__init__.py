"""Trajectories in the formats of other programs; ASE and MDTraj write them.

    export(load_trajectory("run.npz"), "run.pdb")

A format is a writer, a function of (trajectory, path), and a line in `FORMATS`; its name is the file's ending.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from kstep.analysis.show.formats.with_ase import ase_writer, to_atoms
from kstep.analysis.show.formats.with_mdtraj import mdtraj_writer, to_mdtraj
from kstep.errors import UserError, did_you_mean
from kstep.files import replacing
from kstep.outputs import check_free
from kstep.schemas import Trajectory

__all__ = ["FORMATS", "export", "to_atoms", "to_mdtraj"]

FORMATS: dict[str, Callable[[Trajectory, Path], None]] = {
    "xyz": ase_writer("xyz"),
    "extxyz": ase_writer("extxyz"),
    "traj": ase_writer("traj"),
    "pdb": mdtraj_writer("save_pdb"),
    "dcd": mdtraj_writer("save_dcd"),
    "xtc": mdtraj_writer("save_xtc"),
    "hdf5": mdtraj_writer("save_hdf5"),
}
HOLD_WEIGHTS = {"extxyz", "traj"}  # in the info of a frame
ENDINGS = {"h5": "hdf5"}  # where a format has another one


def export(trajectory: Trajectory, path: str | Path, format: str | None = None, *, overwrite: bool = False) -> Path:
    """Write all frames, replica after replica, whole or not at all; format: of FORMATS, None: by the ending of `path`.

    Raises UserError for a format that is not known, whose library is not there, or that has no place for the weights
    of a weighted trajectory's frames, and where something lies at `path` (see kstep.outputs).
    """
    path = Path(path)
    ending = path.suffix.removeprefix(".").lower()
    name = format or ENDINGS.get(ending, ending)
    if name not in FORMATS:
        raise UserError(f"{path}: no format is called '{name}'{did_you_mean(name, FORMATS)}")
    if name not in HOLD_WEIGHTS:
        trajectory.check_alike(name)
    check_free(path, overwrite=overwrite)
    with replacing(path) as temporary:
        try:
            FORMATS[name](trajectory, temporary)
        except ImportError as missing:
            raise UserError(f"{path}: to write {name} takes the package '{missing.name}'; install it with "
                            "pip") from None
    return path
