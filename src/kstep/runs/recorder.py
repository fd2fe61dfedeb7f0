"""A trajectory on disk while it grows: chunks, restart files, and the final npz.

Frames go to <out>.parts/chunk_00000.npz, ... ; beside them checkpoint.npz holds the whole state
and the random generator.  `finish` streams the chunks into <out> without ever holding the
trajectory in memory, and removes the folder.  A run cut anywhere continues from its last
checkpoint, bit-equal on CPU.  So does a finished one that is to be longer: <out> holds its last
checkpoint, from which `reopen` lays the folder out again.

The restart file before the last one is kept, and stands in for one that is damaged; it knows the checksum of every
chunk, so that a damaged one is found when a run is resumed, not when it ends.
"""

from __future__ import annotations

import json
import logging
import shutil
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

import numpy as np

from kstep import npz, schemas
from kstep.errors import UserError
from kstep.files import Claim, is_kept, previous_of, replacing, sha256, write_json_atomic
from kstep.fingerprint import as_written, check_same
from kstep.restraints import Bias, Restraint
from kstep.runs.tolerance import Recorded
from kstep.schemes.base import Scheme
from kstep.schemes.state import Info, State, kinetic_energy, per_replica
from kstep.units import PS_PER_FS

RESTART = "restart"  # array of a finished file: the bytes of the restart file that a longer run goes on from
CHECKPOINT = "checkpoint.npz"
BEGIN_ANEW = "--overwrite begins anew, and keeps what is there under another name"
SETTLED = ("tuning", "inner")  # keys of the metadata, and files of the folder of parts: what was measured for the run

log = logging.getLogger("kstep")


def kept_file(path: str | Path, name: str) -> Path:
    """A file in the folder of parts of the run that writes `path`: what it settled at its start."""
    return parts_of(path) / name


def parts_of(path: str | Path) -> Path:
    """The folder of what an unfinished run that writes `path` has left so far."""
    path = Path(path)
    return path.with_name(path.name + ".parts")


def has_restart(path: str | Path) -> bool:
    """Whether an unfinished run that writes `path` can be gone on with."""
    return is_kept(kept_file(path, CHECKPOINT))


def holds_parts(path: str | Path) -> bool:
    """Whether an unfinished run has left anything of what is to become `path`."""
    return any(parts_of(path).glob("*"))


def facts_of_run(molecule, scheme: Scheme | type[Scheme], config, *, k_steps: int, method: str, seed: int) -> dict:
    """What is known of a run before it starts, for its metadata; config: its settled HybridConfig or BaselineConfig."""
    held = config.restraints or ()
    return {"molecule": molecule.name, "smiles": molecule.smiles, "method": method,
            "charge": molecule.charge, "multiplicity": molecule.multiplicity, "units": "nm ps Da kJ/mol K",
            "scheme": scheme.name, "scheme_traits": scheme.traits.as_dict(),
            "caveats": [*scheme.caveats(config), *([_of_restraints(held)] if held else [])], **_record_of(held),
            "k_steps": k_steps, "dt_fs": config.dt_fs, "jump_fs": k_steps * config.dt_fs,
            "temperature_K": config.temperature_K, "seed": seed, "config": config.model_dump()}


def _record_of(held: Sequence[Restraint]) -> dict:
    return {"restraints": [restraint.model_dump(mode="json") for restraint in held]} if held else {}


def _of_restraints(held: Sequence[Restraint]) -> str:
    return (f"restraints held the molecule: {'; '.join(map(str, held))}; averages are of the ensemble without them, by "
            "weights exp(W/kT), and say nothing of what the restraints kept it from")


def clear_remains(path: str | Path, *, calls: bool) -> None:
    """Remove what a run whose file is whole at `path` has left in its folder of parts; calls: true calls too, and it.
    """
    for part in parts_of(path).glob("*"):
        if calls or not part.name.startswith("calls_"):
            part.unlink()
    if calls:
        with suppress(OSError):
            parts_of(path).rmdir()


def write_restart(path: Path, state: State, rng: np.random.Generator, fingerprint: dict, progress: dict,
                  beside: dict[str, np.ndarray] | None = None, **more) -> None:
    """Everything needed to go on from `state`; progress and more: plain JSON; fingerprint: see `read_restart`.

    beside: arrays of the same generation.  The restart file that was there is kept as `previous_of` it.
    """
    text = {"fingerprint": fingerprint, "rng": rng.bit_generator.state, "progress": progress, "step": state.step,
            **more}
    npz.write_npz(path, {**per_replica(state), **(beside or {}), "text": np.array(json.dumps(text))},
                      keep_previous=True)


def read_restart(path: Path, fingerprint: dict, begun: str = "started"
                 ) -> tuple[State, np.random.Generator, dict, dict[str, np.ndarray]] | None:
    """State, generator, what was written beside them as text and as arrays; None when there is no such file.

    A damaged file gives way to the one before it, which is said aloud.  UserError when both are damaged, and when
    `fingerprint`, what a resumed run must share, is not the one that was written.
    """
    if not is_kept(path):
        return None
    state, rng, text, others = _last_whole(path)
    check_same(f"{path.parent} was {begun}", text["fingerprint"], fingerprint, f"use the same ones, or {BEGIN_ANEW}")
    return state, rng, text, others


def _last_whole(path: Path) -> tuple[State, np.random.Generator, dict, dict[str, np.ndarray]]:
    """What a restart file holds, or the one before it where that is damaged."""
    damage = []
    for candidate in (path, previous_of(path)):
        try:
            found = _unpacked(npz.read_npz(candidate))
        except (UserError, KeyError, ValueError, TypeError, AttributeError, OverflowError) as error:
            damage.append(str(error) if isinstance(error, UserError) else f"{candidate} is no restart file")
            continue
        if damage:
            log.warning("%s; going on from the one before it", damage[0])
        return found
    raise UserError(f"{damage[0]}, and so is the restart file before it; {BEGIN_ANEW}")


def _unpacked(arrays: dict[str, np.ndarray]) -> tuple[State, np.random.Generator, dict, dict[str, np.ndarray]]:
    """State, generator, text and other arrays of a restart file's arrays; any error of Python where they are none."""
    text = json.loads(str(arrays.pop("text")))
    if not isinstance(text["fingerprint"], dict) or not isinstance(text["progress"], dict):
        raise ValueError
    rng = np.random.default_rng()
    rng.bit_generator.state = text["rng"]
    known = {f.name for f in fields(State)}  # restart files of before Info hold its arrays as well
    state = State(step=int(text.get("step", 0)), **{name: array for name, array in arrays.items() if name in known})
    return state, rng, text, {name: array for name, array in arrays.items() if name not in known}


class TrajectoryWriter:
    """Collects frames of some replicas of one molecule; `fingerprint` is what a resumed run must share."""

    def __init__(self, path: str | Path, *, masses, masses_sampler, atom_types, bonds,
                 fingerprint: dict, store_forces: bool = True, restraints: Sequence[Restraint] = (),
                 claim: Claim | None = None):
        """restraints: that energies and forces of the states hold, which are stored without them; claim: on the folder
        of parts, where it is held already."""
        self.path = Path(path)
        self.parts = parts_of(path)
        self.constants = dict(masses=masses, masses_sampler=masses_sampler, atom_types=atom_types,
                              bonds=np.asarray(bonds).reshape(-1, 2))
        self.fingerprint = as_written(fingerprint)
        self.store_forces, self._bias = store_forces, Bias(restraints) if restraints else None
        self.segments: list[dict] = []
        self._frames: dict[str, list[np.ndarray]] = {}
        self._chunks: list[str] = []  # the checksum of each
        self._joined: tuple[int, dict[str, np.ndarray]] = 0, {}  # of how many chunks, what `recorded_frames` has read
        self._held = claim

    def open_segment(self, replica: int, role: str, ensemble: str, temperature_K: float, n_dof: int) -> int:
        """Start a new stretch of one replica; frames added with its id belong to it."""
        self.segments.append({"replica": int(replica), "role": role, "ensemble": ensemble,
                              "temperature_K": float(temperature_K), "n_dof": int(n_dof)})
        return len(self.segments) - 1

    def call_burn_in(self, segments) -> None:
        """Stretches that turned out not to be production are called equilibration."""
        for segment in segments:
            self.segments[segment]["role"] = "equil"

    def add(self, state: State, dt_fs: float, replica, segment, info: Info | None = None) -> None:
        """Append one frame of every replica; replica and segment are (R,) ids; info: of a macro-step that ends here."""
        n = state.n_replicas
        kinetic = kinetic_energy(state.velocities, np.asarray(self.constants["masses_sampler"]))
        bias, energy, forces = self._without_bias(state)
        frame = dict(
            pos=state.positions, vel=state.velocities, Ekin=kinetic, Epot=energy,
            Etot=kinetic + state.energy, time_ps=np.full(n, state.step * dt_fs * PS_PER_FS),
            step=np.full(n, state.step), replica=np.broadcast_to(replica, n).copy(),
            segment=np.broadcast_to(segment, n).copy())
        if len(state.dipole):
            frame["dipole"] = state.dipole
        if self._bias is not None:
            frame["bias"] = bias
        if self.store_forces:
            frame["forces"] = forces
        if info is not None:
            frame.update(accepted=info.accepted, attempts=info.attempts, inner_steps=info.inner_steps,
                         delta_H=info.delta_H)
            if len(info.weight):
                frame["weight"] = info.weight
        for key, value in frame.items():
            self._frames.setdefault(key, []).append(value)

    def _without_bias(self, state: State) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """W (R,), and energy (R,) and forces (R,N,3) of a state less those of W."""
        if self._bias is None:
            return np.zeros(state.n_replicas), state.energy, state.forces
        bias, bias_forces = self._bias.energy_and_forces(state.positions)
        return bias, state.energy - bias, state.forces - bias_forces

    def _write_chunk(self) -> None:
        if self._frames:
            chunk = {key: np.concatenate(values) for key, values in self._frames.items()}
            path = self._chunk(len(self._chunks))
            npz.write_npz(path, chunk)
            self._chunks.append(sha256(path))
            self._frames = {}

    def _chunk(self, number: int) -> Path:
        return self.parts / f"chunk_{number:05d}.npz"

    def checkpoint(self, state: State, rng: np.random.Generator, progress: dict) -> None:
        """Write the frames so far and everything needed to go on from `state`."""
        self._write_chunk()
        write_restart(self.parts / CHECKPOINT, state, rng, self.fingerprint, progress, segments=self.segments,
                      n_chunks=len(self._chunks), chunks=self._chunks)

    def _claim(self) -> None:
        """Hold the folder of parts while this process lives."""
        if self._held is None:
            self._held = Claim(self.parts, self.path)

    def release(self) -> None:
        """Let go of the folder of parts, which is removed when nothing is in it."""
        if self._held is not None:
            self._held.release()
            self._held = None

    def resume(self) -> tuple[State, np.random.Generator, dict] | None:
        """State, generator and progress of the last checkpoint; None when there is none.

        UserError where a chunk is damaged or missing, or where there are chunks whose restart file is gone.
        """
        if not is_kept(self.parts / CHECKPOINT):
            if self._chunk(1).is_file():  # the first restart file follows the first chunk
                raise UserError(f"{self.parts} holds frames of a run and no restart file; {BEGIN_ANEW}")
            return None
        self._claim()
        saved = read_restart(self.parts / CHECKPOINT, self.fingerprint)
        assert saved is not None  # one is there, and nobody else is here
        state, rng, text, _ = saved
        if not isinstance(text.get("segments"), list) or not isinstance(text.get("n_chunks"), int):
            raise UserError(f"{self.parts / CHECKPOINT} is no restart file of a trajectory; {BEGIN_ANEW}")
        self.segments = text["segments"]
        # a restart file of before checksums only says how many there are
        self._chunks = [_checked(self._chunk(number), checksum) for number, checksum in
                        enumerate(text.get("chunks", [None] * text["n_chunks"]))]
        return state, rng, text["progress"]

    def recorded_frames(self, metadata: dict) -> schemas.Trajectory:
        """All frames so far with such metadata, without velocities and forces, which few need and which are large."""
        self._write_chunk()
        needed, (n_known, known) = set(schemas.PER_FRAME) - {"vel", "forces"}, self._joined
        chunks = [known] if known else []
        chunks += [npz.read_npz(self._chunk(i), only=needed) for i in range(n_known, len(self._chunks))]
        self._joined = len(self._chunks), {key: np.concatenate([c[key] for c in chunks]) for key in chunks[0]
                                           } if chunks else {}
        nothing = np.zeros((0, len(self.constants["masses"]), 3))
        arrays = schemas.complete_trajectory({**self.constants, "vel": nothing, "forces": nothing, **self._joined[1]})
        return schemas.Trajectory(**arrays, metadata={**metadata, "segments": self.segments})

    def recorded_truths(self) -> Recorded:
        """What the truth said of all frames so far that a proposal led to, without restraints; of a run that keeps
        forces."""
        self._write_chunk()
        chunks = [npz.read_npz(self._chunk(i), only={"pos", "Epot", "forces", "accepted"})
                  for i in range(len(self._chunks))]
        new = [chunk["accepted"].astype(bool) for chunk in chunks]  # a frame that stayed was told before

        def joined(name: str) -> np.ndarray:
            return np.concatenate([np.asarray(chunk[name][rows], dtype=np.float64) for chunk, rows in zip(chunks, new)])

        return Recorded(joined("pos"), joined("Epot"), joined("forces"))

    def finished(self) -> dict | None:
        """Metadata of the final file if an earlier run with the same settings wrote it."""
        if not self.path.is_file():
            return None
        metadata = schemas.load_trajectory(self.path).metadata
        return metadata if metadata.get("fingerprint") == self.fingerprint else None

    def start_over(self) -> None:
        """Remove what an earlier, unfinished run left behind, but for true calls (forces.journal looks after them)."""
        self._claim()
        clear_remains(self.path, calls=False)

    def finish(self, metadata: dict, *, goes_on: bool = False) -> None:
        """Stream the chunks into the final file, check it, remove the parts.

        goes_on: the file keeps the last checkpoint, if there is one, for `reopen`.
        """
        self._write_chunk()
        chunks = [self._chunk(i) for i in range(len(self._chunks))]
        held = _record_of(self._bias.restraints) if self._bias is not None else {}
        metadata = {**metadata, **held, "segments": self.segments, "fingerprint": self.fingerprint}
        checkpoint, beside = self.parts / CHECKPOINT, {}
        if goes_on and checkpoint.is_file():
            beside[RESTART] = np.frombuffer(checkpoint.read_bytes(), dtype=np.uint8)
        for chunk, checksum in zip(chunks, self._chunks):
            _checked(chunk, checksum)
        merge_trajectories(self.path, chunks, self.constants, metadata, beside)
        for restart in (previous_of(checkpoint), checkpoint):  # first, so that what a kill leaves is no unfinished run
            restart.unlink(missing_ok=True)
        shutil.rmtree(self.parts, ignore_errors=True)
        self.release()


def _checked(chunk: Path, checksum: str | None) -> str:
    """The checksum of a chunk, UserError where it is not the one that was written down (None: none was)."""
    if not chunk.is_file():
        raise UserError(f"{chunk}, a part of this run, is missing; put it back, or {BEGIN_ANEW}")
    found = sha256(chunk)
    if checksum not in (None, found):
        raise UserError(f"{chunk}, a part of this run, is damaged; put back a copy of it, or {BEGIN_ANEW}")
    return found


def reopen(path: Path) -> bool:
    """Lay out the folder of parts of a finished run as it was at its last checkpoint; False where the file holds none.

    Frames after that checkpoint are made again.  UserError where what it holds is none.
    """
    arrays = npz.read_npz(path)
    if RESTART not in arrays:
        return False
    restart, metadata = npz.read_npz(path, within=arrays[RESTART].tobytes()), json.loads(str(arrays["metadata"]))
    try:
        text = json.loads(str(restart["text"]))
        before = arrays["step"] <= text["step"]
    except (KeyError, ValueError, TypeError):
        raise UserError(f"what {path} holds to go on from is no restart file; choose another output, or {BEGIN_ANEW}"
                        ) from None
    parts_of(path).mkdir(exist_ok=True)
    for name in SETTLED:
        if metadata.get(name):
            write_json_atomic(kept_file(path, f"{name}.json"), metadata[name])
    frames = {key: arrays[key][before] for key in schemas.PER_FRAME if len(arrays.get(key, ()))}
    chunk = kept_file(path, "chunk_00000.npz")
    npz.write_npz(chunk, frames)
    text |= {"n_chunks": 1, "chunks": [sha256(chunk)]}
    npz.write_npz(kept_file(path, CHECKPOINT), {**restart, "text": np.array(json.dumps(text))})
    return True


def merge_trajectories(path: Path, chunks: list[Path], constants: dict, metadata: dict,
                       beside: dict[str, np.ndarray] | None = None) -> None:
    """Concatenate per-frame arrays of chunk files into one trajectory, one array at a time.

    beside: arrays that are no part of the trajectory, for the file all the same.
    """
    if not chunks:
        raise UserError(f"nothing was recorded for {path}; every length in the config is zero")
    with np.load(chunks[0], allow_pickle=False) as first:
        keys = [key for key in schemas.PER_FRAME if key in first.files]
        template = schemas.complete_trajectory({**constants, **{k: first[k][:0] for k in keys}})
    # A frameless file with the right schema gives every small array; frames are streamed in beside it.
    head = path.with_name(f".{path.name}.head")
    schemas.save_trajectory(head, template, metadata)
    try:
        with replacing(path) as temporary, zipfile.ZipFile(head) as source, \
                zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED, allowZip64=True) as target:
            for name in source.namelist():
                if name.removesuffix(".npy") not in keys:
                    target.writestr(name, source.read(name))
            for key in keys:
                _stream(target, key, chunks, template[key].dtype)
            for key, array in (beside or {}).items():
                with target.open(f"{key}.npy", "w") as handle:
                    np.lib.format.write_array(handle, array, allow_pickle=False)
    finally:
        head.unlink(missing_ok=True)


def _stream(target: zipfile.ZipFile, key: str, chunks: list[Path], dtype) -> None:
    shapes = []
    for chunk in chunks:
        with np.load(chunk, allow_pickle=False) as archive:
            shapes.append(archive[key].shape)
    shape = (sum(s[0] for s in shapes), *shapes[0][1:])
    with target.open(f"{key}.npy", "w", force_zip64=True) as handle:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_2_0(handle, header)
        for chunk in chunks:
            with np.load(chunk, allow_pickle=False) as archive:
                handle.write(np.ascontiguousarray(archive[key], dtype=dtype).tobytes())


def join_replicas(path: Path, pieces: list[Path], metadata: dict) -> None:
    """Join one-replica trajectories of one molecule into a single file, replicas renumbered."""
    joined = vars(schemas.join_trajectories([*map(schemas.load_trajectory, pieces)]))
    segments = joined.pop("metadata")["segments"]
    schemas.save_trajectory(path, joined, {**metadata, "segments": segments})
