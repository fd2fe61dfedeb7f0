"""Distillation: a network learns one molecule from another network, without any true call.

The teacher labels the training frames of a dataset and the geometries its own dynamics visits; the
student's training set is made of both.  The validation windows keep their true labels, so
that every error that is printed, and the choice of best.pt, is against the truth.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from kstep.errors import UserError
from kstep.files import sha256
from kstep.models import checkpoint as checkpoints
from kstep.models.model_config import ModelConfig
from kstep.schemas import load_dataset, save_dataset
from kstep.training.train_config import TrainConfig

LABELLED_AT_ONCE = 64


def check_teacher(teacher: dict, path: Path, model_config: ModelConfig, arrays: dict, windows: np.ndarray) -> int:
    """Number of the one molecule of the chosen windows; UserError where distillation makes no sense."""
    if "energy" not in checkpoints.heads_of(teacher):
        raise UserError(f"--teacher {path} has no energy head to learn from; train one with heads: {{energy: true}}")
    if model_config.heads.jump or model_config.use_force_head:
        raise UserError("a teacher gives energies and forces; the student's model config must have the energy head "
                        "alone")
    molecules = np.unique(arrays["molecule_id"][windows])
    if len(molecules) != 1:
        raise UserError(f"a student learns one molecule from its teacher, the splits hold {len(molecules)}; pick one "
                        "with 02_make_dataset.py --molecule NAME")
    return int(molecules[0])


def frames_of(arrays: dict, windows: np.ndarray) -> np.ndarray:
    """Geometries (2S,N,3) nm at the starts and ends of windows (S,) of one molecule."""
    rows = arrays["ptr"][windows][:, None] + np.arange(arrays["ptr"][windows[0] + 1] - arrays["ptr"][windows[0]])
    return np.concatenate([arrays["x_t"][rows], arrays["x_tk"][rows]])


def distilled(arrays: dict, val_windows: np.ndarray, molecule: int, network, geometries: np.ndarray,
              temperature_K: float) -> tuple[dict, np.ndarray, np.ndarray]:
    """A dataset of the teacher's labels at geometries (F,N,3) nm, then the true validation windows.

    network: the teacher as a Network.  Returns (arrays, train windows, val windows).  Two geometries
    are the ends of one window, as the energy loss reads both; its velocities are zero.
    """
    geometries = geometries[:len(geometries) // 2 * 2]
    pieces = np.array_split(geometries, -(-len(geometries) // LABELLED_AT_ONCE))
    energy, forces = (np.concatenate(parts) for parts in zip(*(network.energy_and_forces(piece) for piece in pieces)))
    n, n_atoms = len(geometries) // 2, geometries.shape[1]
    nothing = np.zeros((n * n_atoms, 3))
    start, end = slice(0, None, 2), slice(1, None, 2)
    own = {"x_t": geometries[start].reshape(-1, 3), "x_tk": geometries[end].reshape(-1, 3),
           "f_t": forces[start].reshape(-1, 3), "f_tk": forces[end].reshape(-1, 3),
           "v_t": nothing, "v_tk": nothing, "v_half": nothing, "epot_t": energy[start], "epot_tk": energy[end],
           "temperature_K": np.full(n, temperature_K), "molecule_id": np.full(n, molecule), "frame": np.full(n, -1),
           "block": np.full(n, -1), "k_steps": np.full(n, arrays["k_steps"].max())}
    rows = (arrays["ptr"][val_windows][:, None] + np.arange(n_atoms)).reshape(-1)
    joined = {key: np.concatenate([value, arrays[key][rows if value.ndim == 2 else val_windows]])
              for key, value in own.items()}
    n_windows = n + len(val_windows)
    return ({**arrays, **joined, "ptr": np.arange(n_windows + 1) * n_atoms}, np.arange(n), np.arange(n, n_windows))


def facts_of_student(facts: dict, teacher: dict, path: Path, config: TrainConfig) -> dict:
    """What the student's checkpoint says: the teacher's true calls, and whose pupil it is.

    The dataset's own calls are added where the teacher was not trained on this dataset.
    """
    calls = int(teacher["true_calls_training"])
    if teacher["data_sha256"] != facts["data_sha256"]:
        calls += facts["true_calls_training"]
    return {**facts, "true_calls_training": calls,
            "distilled_from": {"sha256": sha256(path), "arch": teacher["config"]["arch"],
                               "frames": config.distill_frames, "temperature_K": config.distill_temperature_K}}


def once(out_dir: Path, facts: dict, metadata: dict, resume: bool, make: Callable) -> tuple:
    """What `make()` gives, kept in <out_dir>/distilled.npz: a resumed training goes on with the very labels."""
    path = out_dir / "distilled.npz"
    if resume and path.is_file():
        arrays, kept = load_dataset(path)
        if kept["distilled_from"] != facts["distilled_from"] or kept["data_sha256"] != facts["data_sha256"]:
            raise UserError(f"{path} was made with another teacher, dataset or distill_* setting; train without "
                            "--resume")
        n = kept["n_train"]
        return arrays, np.arange(n), np.arange(n, len(arrays["k_steps"]))
    arrays, train_windows, val_windows = make()
    save_dataset(path, arrays, {**metadata, "distilled_from": facts["distilled_from"],
                                "data_sha256": facts["data_sha256"], "n_train": len(train_windows)})
    return arrays, train_windows, val_windows
