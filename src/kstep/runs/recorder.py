"""A trajectory on disk while it grows: chunks, restart files, and the final npz.

Frames go to <out>.parts/chunk_00000.npz, ... ; beside them checkpoint.npz holds the whole state
and the random generator.  `finish` streams the chunks into <out> without ever holding the
trajectory in memory, and removes the folder.  A run cut anywhere continues from its last
checkpoint, bit-equal on CPU.  So does a finished one that is to be longer: <out> holds its last
checkpoint, from which `reopen` lays the folder out again.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

import numpy as np

from kstep import schemas
from kstep.errors import UserError
from kstep.files import replacing, write_json_atomic
from kstep.schemes.base import Scheme
from kstep.schemes.state import Info, State, kinetic_energy, per_replica
from kstep.units import PS_PER_FS

RESTART = "restart"  # array of a finished file: the bytes of the restart file that a longer run goes on from
SETTLED = ("tuning", "inner")  # keys of the metadata, and files of the folder of parts: what was measured for the run


def kept_file(path: str | Path, name: str) -> Path:
    """A file in the folder of parts of the run that writes `path`: what it settled at its start."""
    path = Path(path)
    return path.with_name(path.name + ".parts") / name


def facts_of_run(molecule, scheme: Scheme | type[Scheme], config, *, k_steps: int, method: str, seed: int) -> dict:
    """What is known of a run before it starts, for its metadata; config: its settled HybridConfig or BaselineConfig."""
    return {"molecule": molecule.name, "smiles": molecule.smiles, "method": method, "units": "nm ps Da kJ/mol K",
            "scheme": scheme.name, "scheme_traits": scheme.traits.as_dict(), "caveats": scheme.caveats(config),
            "k_steps": k_steps, "dt_fs": config.dt_fs, "jump_fs": k_steps * config.dt_fs,
            "temperature_K": config.temperature_K, "seed": seed, "config": config.model_dump()}


def write_restart(path: Path, state: State, rng: np.random.Generator, fingerprint: dict, progress: dict,
                  **more) -> None:
    """Everything needed to go on from `state`; progress and more: plain JSON; fingerprint: see `read_restart`."""
    text = {"fingerprint": fingerprint, "rng": rng.bit_generator.state, "progress": progress, "step": state.step,
            **more}
    schemas.write_npz(path, {**per_replica(state), "text": np.array(json.dumps(text))})


def read_restart(path: Path, fingerprint: dict,
                 begun: str = "started") -> tuple[State, np.random.Generator, dict] | None:
    """State, generator and what was written beside them; None when there is no such file.

    UserError when `fingerprint`, what a resumed run must share, is not the one that was written.
    """
    if not path.is_file():
        return None
    arrays = schemas.read_npz(path)
    text = json.loads(str(arrays.pop("text")))
    if text["fingerprint"] != fingerprint:
        changed = [k for k in fingerprint if text["fingerprint"].get(k) != fingerprint[k]]
        raise UserError(f"{path.parent} was {begun} with other settings ({', '.join(changed) or 'unknown'}); use the "
                        "same ones, or run without --resume to start over")
    rng = np.random.default_rng()
    rng.bit_generator.state = text["rng"]
    known = {f.name for f in fields(State)}  # restart files of before Info hold its arrays as well
    state = State(step=text.get("step", 0), **{name: array for name, array in arrays.items() if name in known})
    return state, rng, text


class TrajectoryWriter:
    """Collects frames of some replicas of one molecule; `fingerprint` is what a resumed run must share."""

    def __init__(self, path: str | Path, *, masses, masses_sampler, atom_types, bonds,
                 fingerprint: dict, store_forces: bool = True):
        self.path = Path(path)
        self.parts = kept_file(path, "checkpoint.npz").parent
        self.constants = dict(masses=masses, masses_sampler=masses_sampler, atom_types=atom_types,
                              bonds=np.asarray(bonds).reshape(-1, 2))
        self.fingerprint = json.loads(json.dumps(fingerprint))
        self.store_forces = store_forces
        self.segments: list[dict] = []
        self._frames: dict[str, list[np.ndarray]] = {}
        self._n_chunks = 0
        self._lock: int | None = None

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
        frame = dict(
            pos=state.positions, vel=state.velocities, Ekin=kinetic, Epot=state.energy,
            Etot=kinetic + state.energy, time_ps=np.full(n, state.step * dt_fs * PS_PER_FS),
            step=np.full(n, state.step), replica=np.broadcast_to(replica, n).copy(),
            segment=np.broadcast_to(segment, n).copy())
        if self.store_forces:
            frame["forces"] = state.forces
        if info is not None:
            frame.update(accepted=info.accepted, attempts=info.attempts, inner_steps=info.inner_steps,
                         delta_H=info.delta_H)
            if len(info.weight):
                frame["weight"] = info.weight
        for key, value in frame.items():
            self._frames.setdefault(key, []).append(value)

    def _write_chunk(self) -> None:
        if self._frames:
            chunk = {key: np.concatenate(values) for key, values in self._frames.items()}
            schemas.write_npz(self.parts / f"chunk_{self._n_chunks:05d}.npz", chunk)
            self._n_chunks += 1
            self._frames = {}

    def checkpoint(self, state: State, rng: np.random.Generator, progress: dict) -> None:
        """Write the frames so far and everything needed to go on from `state`."""
        self._write_chunk()
        write_restart(self.parts / "checkpoint.npz", state, rng, self.fingerprint, progress, segments=self.segments,
                      n_chunks=self._n_chunks)

    def _claim(self) -> None:
        """Hold the folder of parts while this process lives: two runs into one file would mix their chunks."""
        if self._lock is not None:
            return
        self.parts.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.parts, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise UserError(f"another run is writing {self.path}; wait for it, or choose another output") from None
        except OSError:
            pass  # a file system without locks: nothing guards there
        self._lock = lock

    def release(self) -> None:
        """Let go of the folder of parts, which is removed when nothing is in it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        with suppress(OSError):
            self.parts.rmdir()

    def resume(self) -> tuple[State, np.random.Generator, dict] | None:
        """State, generator and progress of the last checkpoint; None when there is none."""
        if not (self.parts / "checkpoint.npz").is_file():
            return None
        self._claim()
        state, rng, text = read_restart(self.parts / "checkpoint.npz", self.fingerprint)
        self.segments, self._n_chunks = text["segments"], text["n_chunks"]
        return state, rng, text["progress"]

    def recorded(self, role: str, n_replicas: int) -> Iterator[tuple[np.ndarray, ...]]:
        """Positions (R,N,3), energies and weights (R,), or none, of frames on disk where replica 0 has that role."""
        for i in range(self._n_chunks):
            chunk = schemas.read_npz(self.parts / f"chunk_{i:05d}.npz")
            for first in range(0, len(chunk["pos"]), n_replicas):
                if self.segments[chunk["segment"][first]]["role"] == role:
                    frame = slice(first, first + n_replicas)
                    yield chunk["pos"][frame], chunk["Epot"][frame], chunk.get("weight", np.zeros(0))[frame]

    def finished(self) -> dict | None:
        """Metadata of the final file if an earlier run with the same settings wrote it."""
        if not self.path.is_file():
            return None
        metadata = schemas.load_trajectory(self.path).metadata
        return metadata if metadata.get("fingerprint") == self.fingerprint else None

    def start_over(self) -> None:
        """Remove what an earlier, unfinished run left behind, but for true calls (forces.journal looks after them)."""
        self._claim()
        for part in self.parts.iterdir():
            if not part.name.startswith("calls_"):
                part.unlink()

    def finish(self, metadata: dict, *, goes_on: bool = False) -> None:
        """Stream the chunks into the final file, check it, remove the parts.

        goes_on: the file keeps the last checkpoint, if there is one, for `reopen`.
        """
        self._write_chunk()
        chunks = [self.parts / f"chunk_{i:05d}.npz" for i in range(self._n_chunks)]
        metadata = {**metadata, "segments": self.segments, "fingerprint": self.fingerprint}
        checkpoint, beside = self.parts / "checkpoint.npz", {}
        if goes_on and checkpoint.is_file():
            beside[RESTART] = np.frombuffer(checkpoint.read_bytes(), dtype=np.uint8)
        merge_trajectories(self.path, chunks, self.constants, metadata, beside)
        shutil.rmtree(self.parts, ignore_errors=True)
        self.release()


def reopen(path: Path) -> bool:
    """Lay out the folder of parts of a finished run as it was at its last checkpoint; False where the file holds none.

    Frames after that checkpoint are made again.
    """
    arrays = schemas.read_npz(path)
    if RESTART not in arrays:
        return False
    with np.load(io.BytesIO(arrays[RESTART].tobytes()), allow_pickle=False) as archive:
        restart = {key: archive[key] for key in archive.files}
    text, metadata = json.loads(str(restart["text"])), json.loads(str(arrays["metadata"]))
    kept_file(path, "").mkdir(exist_ok=True)
    for name in SETTLED:
        if metadata.get(name):
            write_json_atomic(kept_file(path, f"{name}.json"), metadata[name])
    before = arrays["step"] <= text["step"]
    frames = {key: arrays[key][before] for key in schemas.PER_FRAME if len(arrays[key])}
    schemas.write_npz(kept_file(path, "chunk_00000.npz"), frames)
    text["n_chunks"] = 1
    schemas.write_npz(kept_file(path, "checkpoint.npz"), {**restart, "text": np.array(json.dumps(text))})
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
