"""The .npz files that the stages hand to each other: written, checked and read in one place.

Every file carries `metadata` (JSON text) with `schema` and `schema_version` beside its arrays (kstep.npz).

trajectory  the arrays of `Trajectory`; its metadata is a kstep.run_record.RunRecord, checked when it is written (older
            files are read as they are).  A finished hybrid run has `restart` beside them, the bytes of a restart file
            (kstep.runs.recorder).  A segment is a stretch of one replica in which consecutive frames are
            connected by the dynamics and by nothing else (no velocity redraw, no change of ensemble).
dataset     windows of k timesteps, the arrays of _DATASET_FIELDS; metadata["molecules"]: [{"name", "smiles",
            "method"}], metadata["k_steps"]: the file's k
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import numpy as np

from kstep.errors import UserError
from kstep.files import check_name
from kstep.npz import Fields, Layout, check_arrays, check_layout, read_npz, write_npz
from kstep.restraints import Restraint, check_restraints, read_restraints
from kstep.run_record import check_record
from kstep.units import kT

SCHEMA_VERSION = 1


@dataclass
class Trajectory:
    """One trajectory file in memory: T frames of N atoms, replicas interleaved or concatenated along T.

    Beside each array stand its dtype and shape; one of T|0 frames may be empty.
    """

    pos: Annotated[np.ndarray, "f8", ("T", "N", 3)]  # nm
    vel: Annotated[np.ndarray, "f8", ("T", "N", 3)]  # nm/ps, of the same instant
    forces: Annotated[np.ndarray, "f8", ("T|0", "N", 3)]  # kJ/mol/nm, of the true potential; (0,N,3) if not stored
    Ekin: Annotated[np.ndarray, "f8", ("T",)]  # kJ/mol, of `masses`; of `masses_sampler` for metropolis
    Epot: Annotated[np.ndarray, "f8", ("T",)]  # kJ/mol, true, without restraints; so are forces
    Etot: Annotated[np.ndarray, "f8", ("T",)]  # Ekin + Epot + bias, what NVE keeps
    time_ps: Annotated[np.ndarray, "f8", ("T",)]  # since the start of the replica
    step: Annotated[np.ndarray, "i8", ("T",)]  # baseline timesteps since the start of the replica
    replica: Annotated[np.ndarray, "i8", ("T",)]  # independent seeds and replicas alike
    segment: Annotated[np.ndarray, "i8", ("T",)]  # index into metadata["segments"]
    accepted: Annotated[np.ndarray, "?", ("T|0",)]  # hybrid: the macro-step that ended here was accepted
    attempts: Annotated[np.ndarray, "i8", ("T|0",)]  # hybrid: true calls spent on that macro-step
    inner_steps: Annotated[np.ndarray, "i8", ("T|0",)]  # hybrid: network timesteps in that macro-step
    delta_H: Annotated[np.ndarray, "f8", ("T|0",)]  # kJ/mol, H(proposal) - H(start); NaN where none is tested
    weight: Annotated[np.ndarray, "f8", ("T|0",)]  # of the frame in averages, up to a factor of the file; empty: all 1
    dipole: Annotated[np.ndarray, "f8", ("T|0", 3)]  # e nm, of the true potential, about the centre of mass
    bias: Annotated[np.ndarray, "f8", ("T|0",)]  # kJ/mol, of metadata["restraints"]; empty: there were none
    box: Annotated[np.ndarray, "f8", ("T|0", 3, 3)]  # nm
    masses: Annotated[np.ndarray, "f8", ("N",)]  # Da, physical
    masses_sampler: Annotated[np.ndarray, "f8", ("N",)]  # Da, that the velocities belong to
    atom_types: Annotated[np.ndarray, "i8", ("N",)]  # atomic numbers
    bonds: Annotated[np.ndarray, "i8", ("B", 2)]
    metadata: dict = field(default_factory=dict)

    @property
    def segments(self) -> list[dict]:
        """The table of segments: replica, role, ensemble, temperature_K and n_dof of each."""
        return self.metadata["segments"]

    @property
    def restraints(self) -> tuple[Restraint, ...]:
        """What held its molecule; UserError where the metadata name no such ones."""
        return read_restraints(self.metadata.get("restraints"))

    @property
    def is_restrained(self) -> bool:
        """Whether restraints acted on its frames."""
        return len(self.bias) > 0

    @property
    def is_judged_by_weight(self) -> bool:
        """Whether its frames are no chain of the potential that was sampled, restraints in it, but weigh as much."""
        return len(self.weight) > 0 and bool((self.weight != self.weight[0]).any())

    @property
    def is_weighted(self) -> bool:
        """Whether an average over its frames must heed their weights."""
        return self.is_judged_by_weight or self.is_restrained

    def weights_of(self, frames: np.ndarray) -> np.ndarray:
        """Weights (F,) of frames (F,), of mean 1 over them; UserError where none of them weighs anything.

        Averages under them are of the ensemble without restraints: of a run that was held by a bias W, frames weigh
        exp(W/kT) as well.  What the restraints kept the run from is in no weight; `importance.pareto_k` tells.
        """
        if not self.is_weighted:
            return np.ones(len(frames))
        weights = self.weight[frames] if self.is_judged_by_weight else np.ones(len(frames))
        if self.is_restrained and len(frames):
            exponent = self.reduced_bias(frames)
            weights = weights * np.exp(exponent - exponent.max())
        if len(frames) and not weights.sum() > 0:
            raise UserError("the frames that an average is asked of all weigh 0")
        return weights / weights.mean() if len(frames) else weights

    def reduced_bias(self, frames: np.ndarray) -> np.ndarray:
        """W/kT (F,) of frames (F,), at the temperature of each one's segment; 0 without restraints."""
        if not self.is_restrained:
            return np.zeros(len(frames))
        temperatures_K = np.array([s["temperature_K"] for s in self.segments])
        return self.bias[frames] / kT(temperatures_K[self.segment[frames]])

    def check_alike(self, reader: str) -> None:
        """UserError where frames have weights, for a reader that could not heed them."""
        if self.is_weighted:
            what = "its restraints" if self.is_restrained else "the network"
            raise UserError(f"{reader} has no place for the weights of this run's frames, without which they follow "
                            f"{what}; write extxyz or traj, or frames drawn by weight (--alike, Result.alike())")

    def drawn(self, frames: np.ndarray, n: int) -> np.ndarray:
        """n of the frames, evenly spread, each as often as it weighs: frames that count alike.

        Those at which the running sum of weights passes (i + 1/2)/n of the whole: systematic resampling.
        """
        reached = np.cumsum(self.weights_of(frames))
        return frames[np.searchsorted(reached, (np.arange(n) + 0.5) / n * reached[-1])]

    def frames_of(self, *roles: str) -> np.ndarray:
        """Indices of the frames whose segment has one of the roles, in file order."""
        ids = [i for i, s in enumerate(self.segments) if s["role"] in roles]
        return np.flatnonzero(np.isin(self.segment, ids))


_TRAJECTORY_FIELDS: Fields = {
    name: kind.__metadata__ for name, kind in get_type_hints(Trajectory, include_extras=True).items()
    if hasattr(kind, "__metadata__")}
_TRAJECTORY_MAY_HOLD_NAN = {"delta_H", "dipole"}  # a calculator may not say it at some frame
PER_FRAME = tuple(key for key, (_, shape) in _TRAJECTORY_FIELDS.items() if str(shape[0]).startswith("T"))

# P windows over M molecules of different size, L atoms in all; A: the windows' atoms
_DATASET_FIELDS: Fields = {
    **dict.fromkeys(("x_t", "v_t", "f_t", "x_tk", "v_tk", "f_tk"), ("f8", ("A", 3))),  # at the start and end of each
    "v_half": ("f8", ("A", 3)),  # velocity half a step before the end
    "ptr": ("i8", ("P+1",)),  # window p owns rows ptr[p]:ptr[p+1]
    **dict.fromkeys(("epot_t", "epot_tk"), ("f8", ("P",))),  # kJ/mol
    "temperature_K": ("f8", ("P",)),  # of the segment the window was cut from
    "molecule_id": ("i8", ("P",)),  # index into metadata["molecules"]
    "frame": ("i8", ("P",)),  # of the window's start in its trajectory file
    "block": ("i8", ("P",)),  # time block the window lies in (splits in time)
    "k_steps": ("i8", ("P",)),  # timesteps covered by this window
    "dt_fs": ("f8", ()),
    "mol_ptr": ("i8", ("M+1",)),  # molecule m owns rows mol_ptr[m]:mol_ptr[m+1] of its atoms,
    "atom_types": ("i8", ("L",)),
    "masses": ("f8", ("L",)),
    "bonds": ("i8", ("B", 2)),  # and rows bond_ptr[m]:bond_ptr[m+1] of its bonds (atom numbers local to it)
    "bond_ptr": ("i8", ("M+1",)),
    "charge": ("i8", ("M",)),
    "multiplicity": ("i8", ("M",)),
}


def read_metadata(path: str | Path) -> dict:
    """The metadata of a file of any schema, without its arrays; a file that has none is a UserError."""
    try:
        metadata = json.loads(str(read_npz(path, only={"metadata"})["metadata"]))
    except (KeyError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} has no readable 'metadata'; run its stage again") from None
    if not isinstance(metadata, dict):
        raise UserError(f"{path}: its metadata is no mapping; run its stage again")
    _check_names(path, metadata)
    return metadata


def _check_names(path: str | Path, metadata: dict) -> None:
    """UserError for molecules whose names cannot be folders: reports make one of each."""
    molecules = metadata.get("molecules")
    names = [m["name"] for m in molecules if isinstance(m, dict) and "name" in m] if isinstance(molecules, list) else []
    for name in [*([metadata["molecule"]] if "molecule" in metadata else []), *names]:
        try:
            check_name(name)
        except UserError as error:
            raise UserError(f"{path} is of a molecule whose {error}") from None


def _pack_metadata(metadata: dict, schema: str) -> np.ndarray:
    return np.array(json.dumps({**metadata, "schema": schema, "schema_version": SCHEMA_VERSION}))


def _unpack_metadata(path: str | Path, arrays: dict, schema: str) -> dict:
    try:
        metadata = json.loads(str(arrays.pop("metadata")))
    except (KeyError, json.JSONDecodeError):
        raise UserError(f"{path} is not a {schema} file: it has no readable 'metadata'") from None
    if not isinstance(metadata, dict):
        raise UserError(f"{path} is not a {schema} file: its 'metadata' is no mapping")
    if metadata.get("schema") != schema:
        raise UserError(f"{path} holds a '{metadata.get('schema')}', expected a '{schema}'")
    if metadata.get("schema_version") != SCHEMA_VERSION:
        raise UserError(
            f"{path} has schema version {metadata.get('schema_version')}, this md-kstep reads "
            f"{SCHEMA_VERSION}; run its stage again"
        )
    _check_names(path, metadata)
    return metadata


def check_molecule(path: str | Path, numbers: np.ndarray, masses: np.ndarray, bonds: np.ndarray) -> None:
    """Refuse atoms that no element has, masses <= 0 and bonds to atoms that are not there."""
    if len(numbers) == 0 or not (1 <= numbers.min() and numbers.max() <= 118):
        raise UserError(f"{path}: atomic numbers must lie between 1 and 118")
    if not (np.isfinite(masses).all() and masses.min() > 0):
        raise UserError(f"{path}: masses must be above 0")
    if len(bonds) and not (0 <= bonds.min() and bonds.max() < len(numbers)):
        raise UserError(f"{path}: a bond names an atom that is not there (atoms are 0 to {len(numbers) - 1})")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and bool(np.isfinite(value))


def _check_frames(path: str | Path, arrays: dict) -> None:
    """Shapes, dtypes and numbers of a trajectory's arrays."""
    check_arrays(path, "trajectory", arrays, _TRAJECTORY_FIELDS, _TRAJECTORY_MAY_HOLD_NAN)
    if (arrays["weight"] < 0).any():
        raise UserError(f"{path}: 'weight' is below 0 in frame {int(np.argmax(arrays['weight'] < 0))}")


def _check_trajectory(path: str | Path, arrays: dict, metadata: dict) -> None:
    """What the arrays' shapes do not say: segments, timestep, molecule."""
    wanted: dict[str, Any] = {"role": str, "ensemble": str, "replica": int, "temperature_K": (int, float)}
    segments = metadata.get("segments")
    if not isinstance(segments, list) or not all(
            isinstance(s, dict) and all(isinstance(s.get(k), kind) for k, kind in wanted.items()) for s in segments):
        raise UserError(f"{path}: its metadata has no table of segments ({', '.join(wanted)}); run its stage again")
    ids = arrays["segment"]
    if len(ids) and not (0 <= ids.min() and ids.max() < len(segments)):
        raise UserError(f"{path} refers to a segment that its metadata does not list; run its stage again")
    if "dt_fs" in metadata and not (_is_number(metadata["dt_fs"]) and metadata["dt_fs"] > 0):
        raise UserError(f"{path}: dt_fs = {metadata['dt_fs']!r} is not a number above 0; run its stage again")
    for masses in ("masses", "masses_sampler"):
        check_molecule(path, arrays["atom_types"], arrays[masses], arrays["bonds"])
    restraints = read_restraints(metadata.get("restraints"), str(path))
    check_restraints(restraints, len(arrays["atom_types"]))
    if restraints and len(ids) and not len(arrays["bias"]):
        raise UserError(f"{path}: its restraints have no 'bias', by which averages are freed of them; run its stage "
                        "again")


def _check_dataset(path: str | Path, arrays: dict, metadata: dict) -> None:
    """What the arrays' shapes do not say: offsets, molecules, timestep, and the metadata's keys."""
    molecules = metadata.get("molecules")
    if not isinstance(molecules, list) or not all(isinstance(m, dict) and "name" in m for m in molecules):
        raise UserError(f"{path}: its metadata lists no molecules; run 02_make_dataset.py again")
    for key in ("k_steps", "true_calls"):
        if not _is_number(metadata.get(key)):
            raise UserError(f"{path}: its metadata has no '{key}'; run 02_make_dataset.py again")
    if not arrays["dt_fs"] > 0:
        raise UserError(f"{path}: dt_fs = {float(arrays['dt_fs'])} is not above 0; run 02_make_dataset.py again")
    owners = (("ptr", "x_t"), ("mol_ptr", "atom_types"), ("bond_ptr", "bonds"))
    for offsets, rows in owners:
        borders = arrays[offsets]
        if borders[0] != 0 or borders[-1] != len(arrays[rows]) or (np.diff(borders) < 0).any():
            raise UserError(f"{path}: '{offsets}' does not divide the rows of '{rows}'; run 02_make_dataset.py again")
    owner = arrays["molecule_id"]
    listed = not len(owner) or 0 <= owner.min() <= owner.max() < len(molecules)
    if len(arrays["mol_ptr"]) != len(molecules) + 1 or not listed:
        raise UserError(f"{path} refers to a molecule that its metadata does not list; run 02_make_dataset.py again")
    for m in range(len(molecules)):
        atoms = slice(*arrays["mol_ptr"][m:m + 2])
        check_molecule(path, arrays["atom_types"][atoms], arrays["masses"][atoms],
                       arrays["bonds"][slice(*arrays["bond_ptr"][m:m + 2])])


def complete_trajectory(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Fill the optional arrays of a trajectory with empty ones and fix dtypes."""
    out = dict(arrays)
    n_atoms = len(out["atom_types"])
    empty = {"N": n_atoms, "B": 0}
    for key, (dtype, shape) in _TRAJECTORY_FIELDS.items():
        if key not in out and str(shape[0]) == "T|0":
            out[key] = np.zeros((0, *[empty.get(s, s) for s in shape[1:]]), dtype=dtype)
        if key in out:
            out[key] = np.ascontiguousarray(out[key], dtype=dtype)
    return out


def save_trajectory(path: str | Path, arrays: dict[str, np.ndarray], metadata: dict) -> None:
    """Check and write a trajectory; per-frame optional arrays may be left out.  metadata: a run_record.RunRecord."""
    arrays = complete_trajectory(arrays)
    _check_frames(path, arrays)
    check_record(metadata, str(path))
    write_npz(path, {**arrays, "metadata": _pack_metadata(metadata, "trajectory")})


def load_trajectory(path: str | Path) -> Trajectory:
    """Read and check a trajectory file."""
    younger = {"weight": (0,), "bias": (0,), "dipole": (0, 3)}  # than some files

    def check(layout: Layout) -> None:
        absent = {key: (np.dtype("f8"), shape) for key, shape in younger.items()}
        check_layout(path, "trajectory", {**absent, **layout}, _TRAJECTORY_FIELDS)

    metadata = _unpack_metadata(path, read_npz(path, only={"metadata"}), "trajectory")
    arrays = read_npz(path, check=check)
    for key, shape in younger.items():
        arrays.setdefault(key, np.zeros(shape))
    _check_frames(path, arrays)
    _check_trajectory(path, arrays, metadata)
    return Trajectory(**{key: arrays[key] for key in _TRAJECTORY_FIELDS}, metadata=metadata)


def _weights_of_mean_1(trajectory: Trajectory) -> np.ndarray:
    production = trajectory.frames_of("train", "reference")
    counted = production if len(production) else np.arange(len(trajectory.pos))
    weights = trajectory.weight if trajectory.is_judged_by_weight else np.ones(len(trajectory.pos))
    return weights / (weights[counted].mean() or 1.0)


def join_trajectories(trajectories: list[Trajectory]) -> Trajectory:
    """Trajectories of one molecule as one, replicas and segments renumbered; an array that not all hold is left out.

    The metadata are the first one's, with the segments of all.  Weights, which each file has up to a factor of its own,
    come to a mean of 1 over its production.
    """
    first, segments, n_replicas = trajectories[0], [], 0
    pieces: dict[str, list[np.ndarray]] = {key: [] for key in PER_FRAME}
    weighted = any(t.is_judged_by_weight for t in trajectories)
    if any(t.restraints != first.restraints for t in trajectories):
        raise UserError("runs under different restraints are no chains of one ensemble; join them with kstep profile")
    for t in trajectories:
        shift = n_replicas - (int(t.replica.min()) if len(t.replica) else 0)
        for key in PER_FRAME:
            pieces[key].append(getattr(t, key))
        if weighted:
            pieces["weight"][-1] = _weights_of_mean_1(t)
        pieces["segment"][-1], pieces["replica"][-1] = t.segment + len(segments), t.replica + shift
        segments += [{**s, "replica": s["replica"] + shift} for s in t.segments]
        n_replicas = int(pieces["replica"][-1].max(initial=n_replicas - 1)) + 1
    whole = {key: all(len(p) == len(t.pos) for p, t in zip(parts, trajectories)) for key, parts in pieces.items()}
    return replace(first, metadata={**first.metadata, "segments": segments},
                   **{key: np.concatenate(parts) if whole[key] else parts[0][:0] for key, parts in pieces.items()})


def save_dataset(path: str | Path, arrays: dict[str, np.ndarray], metadata: dict) -> None:
    """Check and write a dataset of k-step windows."""
    check_arrays(path, "dataset", arrays, _DATASET_FIELDS)
    write_npz(path, {**arrays, "metadata": _pack_metadata(metadata, "dataset")})


def load_dataset(path: str | Path) -> tuple[dict[str, np.ndarray], dict]:
    """Read and check a dataset; returns (arrays, metadata)."""
    metadata = _unpack_metadata(path, read_npz(path, only={"metadata"}), "dataset")
    arrays = read_npz(path, check=lambda layout: check_layout(path, "dataset", layout, _DATASET_FIELDS))
    del arrays["metadata"]
    check_arrays(path, "dataset", arrays, _DATASET_FIELDS)
    _check_dataset(path, arrays, metadata)
    return arrays, metadata
