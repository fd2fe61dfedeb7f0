"""Windows of many trajectories -> one dataset file (schema `dataset`)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kstep.errors import UserError
from kstep.files import sha256
from kstep.schemas import load_trajectory
from kstep.training.rotations import random_rotations
from kstep.training.windows import N_BLOCKS, ROLES, check_usable, windows_of


def find_trajectories(root: str | Path, molecules: list[str] | None = None) -> dict[str, Path]:
    """{molecule name: <root>/<name>/trajectory.npz}, sorted by name."""
    root = Path(root)
    found = {path.parent.name: path for path in sorted(root.glob("*/trajectory.npz"))}
    if not found:
        raise UserError(f"no trajectory found under {root}: expected {root}/<name>/trajectory.npz; "
                        "run 01_run_md_baselines.py or 01b_run_qm_baselines.py first")
    for name in molecules or []:
        if name not in found:
            raise UserError(f"{root}/{name}/trajectory.npz does not exist; found: {', '.join(found)}")
    return {name: found[name] for name in molecules or found}


def turn_randomly(windows: dict, copies: int, rng: np.random.Generator) -> dict:
    """Add `copies` randomly rotated copies of each window (equivariant models do not need them)."""
    vectors = ("x_t", "v_t", "f_t", "x_tk", "v_tk", "f_tk", "v_half")
    out = {key: [value] for key, value in windows.items()}
    n = len(windows["frame"])
    for _ in range(copies):
        q = random_rotations(rng, n)
        for key, value in windows.items():
            out[key].append(np.einsum("pni,pji->pnj", value, q) if key in vectors else value)
    return {key: np.concatenate(parts) for key, parts in out.items()}


def build_dataset(paths: dict[str, Path], k: int, *, stride: int | None = None, max_samples: int = 10000,
                  rotations: int = 0, seed: int = 0) -> tuple[dict, dict]:
    """Dataset arrays and metadata (schema `dataset`) of windows of k timesteps over all molecules.

    paths: {name: trajectory file}.  Raises UserError for k < 1, mixed timesteps, missing forces
    or when no window fits.
    """
    if k < 1:
        raise UserError(f"k = {k} is not a number of timesteps >= 1")
    if rotations > 100:
        raise UserError(f"{rotations} rotated copies of every window are more than any memory holds; 100 are the most")
    parts, molecules, inputs, dropped = [], [], [], {}
    statics = {key: [] for key in ("atom_types", "masses", "bonds", "charge", "multiplicity")}
    dt_fs, true_calls = None, 0
    for index, (name, path) in enumerate(paths.items()):
        trajectory = load_trajectory(path)
        check_usable(trajectory, path)
        meta = trajectory.metadata
        if "dt_fs" not in meta:
            raise UserError(f"{path} has no 'dt_fs' in its metadata; run its stage again")
        if dt_fs is not None and meta["dt_fs"] != dt_fs:
            raise UserError(f"{path} has dt_fs {meta['dt_fs']}, the trajectories before it {dt_fs}; "
                            "one dataset needs one timestep")
        dt_fs = meta["dt_fs"]
        windows, why = windows_of(trajectory, k, stride=stride, max_samples=max_samples)
        if not windows:
            raise UserError(f"{path}: no window of k = {k} timesteps fits into its segments of role "
                            f"{' or '.join(ROLES)}; frames must be stored at multiples that divide k")
        if rotations:
            windows = turn_randomly(windows, rotations, np.random.default_rng([seed, index]))
        parts.append({**windows, "molecule_id": np.full(len(windows["frame"]), index)})
        for key in ("atom_types", "masses", "bonds"):
            statics[key].append(getattr(trajectory, key))
        statics["charge"].append(int(meta.get("charge", 0)))
        statics["multiplicity"].append(int(meta.get("multiplicity", 1)))
        molecules.append({"name": name, "smiles": meta.get("smiles", ""), "method": meta.get("method", "")})
        inputs.append({"molecule": name, "sha256": sha256(path)})
        true_calls += int(meta.get("true_calls", 0))
        dropped[name] = dict(why)
    methods = sorted({m["method"] for m in molecules})
    if len(methods) > 1:
        raise UserError(f"the trajectories mix methods ({', '.join(methods)}); one dataset needs one")
    per_molecule = [len(types) for types in statics["atom_types"]]
    per_window = np.concatenate([np.full(len(p["frame"]), n) for p, n in zip(parts, per_molecule)])
    arrays = {key: np.concatenate([p[key].reshape(-1, 3) if p[key].ndim == 3 else p[key] for p in parts])
              for key in parts[0]}
    arrays |= {
        "ptr": np.concatenate([[0], np.cumsum(per_window)]), "dt_fs": np.array(float(dt_fs)),
        "mol_ptr": np.concatenate([[0], np.cumsum(per_molecule)]),
        "bond_ptr": np.concatenate([[0], np.cumsum([len(b) for b in statics["bonds"]])]),
        **{key: np.array(statics[key], dtype=np.int64) for key in ("charge", "multiplicity")},
        **{key: np.concatenate(statics[key]) for key in ("atom_types", "masses", "bonds")}}
    metadata = {
        "units": "nm ps Da kJ/mol", "molecules": molecules, "method": methods[0], "k_steps": k,
        "dt_fs": float(dt_fs), "jump_fs": k * float(dt_fs), "stride": stride or k, "roles": list(ROLES),
        "n_blocks": N_BLOCKS, "rotations": rotations, "seed": seed, "inputs": inputs,
        "true_calls": true_calls, "dropped": dropped,
    }
    return arrays, metadata
