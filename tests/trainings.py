"""Small trainings on springs: what the tests of 04_train.py and kstep.training share."""

import json
from pathlib import Path

import torch

from kstep.models import build_model, checkpoint as checkpoints
from kstep.models.model_config import ModelConfig
from kstep.schemas import load_dataset, save_dataset
from kstep.training import normalisation as normalise
from kstep.training.batches import Windows
from kstep.training.dataset import build_dataset
from kstep.training.splits import make_splits, select
from kstep.training.train_config import TrainConfig
from springs import METHANOL, WATER, write_trajectory

ROOT = Path(__file__).parents[1]
PAIR_MLP = ModelConfig(arch="pair_mlp", pair_hidden=[24, 24])
JUMP = ModelConfig(arch="egnn", heads={"energy": False, "jump": True}, elements=[1, 6, 8], hidden_dim=12,
                   vector_dim=6, num_layers=1, num_rbf=8)
EGNN = ModelConfig(arch="egnn", heads={"energy": True, "jump": True}, elements=[1, 6, 8], hidden_dim=12,
                   vector_dim=6, num_layers=1, num_rbf=8)
TRANSFORMER = ModelConfig(arch="transformer_egnn", heads={"energy": True, "jump": False}, elements=[1, 6, 8],
                          hidden_dim=12, vector_dim=6, num_layers=1, num_rbf=8, attention_heads=2, feedforward_dim=24)
FACTS = {"k_steps": 4, "dt_fs": 0.5, "spans": [4, 2, 1], "units": checkpoints.UNITS, "molecule": None,
         "temperature_K": 300.0, "method": "springs", "data_sha256": "", "true_calls_training": 1}


MOLECULES = {"methanol": METHANOL, "water": WATER}


def make_dataset(folder, *names, offset=-500.0, max_samples=400):
    """dataset_k4.npz of springs and its splits in time; offset kJ/mol: zero of energy of a "method"."""
    paths = {name: write_trajectory(folder / name / "trajectory.npz", MOLECULES[name], name=name, offset=offset)
             for name in names}
    arrays, metadata = build_dataset(paths, 4, max_samples=max_samples)
    save_dataset(folder / "dataset_k4.npz", arrays, metadata)
    for part, split in make_splits(list(names), metadata["n_blocks"], by="time").items():
        (folder / f"{part}.json").write_text(json.dumps(split))
    return folder


def prepare(folder, model_config, device="cpu", **changes):
    """What `train` takes, of a fresh network on a device; changes: keys of the TrainConfig."""
    arrays, metadata = load_dataset(folder / "dataset_k4.npz")
    rows = [select(arrays, metadata, json.loads((folder / f"{p}.json").read_text())) for p in ("train", "val")]
    torch.manual_seed(0)
    model = build_model(model_config, Windows.molecule_of(0, arrays)).to(device)
    data = Windows(arrays, metadata, device)
    train_rows = torch.as_tensor(rows[0], device=device)
    normalise.fit(model, data, train_rows)
    config = TrainConfig(**{"batch_size": 32, "max_epochs": 4, "lr": 3e-3, "ema_decay": 0.9, **changes})
    facts = {**FACTS, "molecule": {k: torch.as_tensor(v) for k, v in Windows.molecule_of(0, arrays).items()}}
    return dict(model=model, data=data, train_windows=rows[0], val_windows=rows[1], config=config,
                scales=normalise.scales(data, train_rows), facts=facts, progress=False)


TIMES = ("time", "wall_s", "samples_per_s", "peak_memory_MB")  # what no two runs have in common


def rows_of(out_dir, *kinds):
    """Rows of the log, of the kinds given, without what a clock says."""
    rows = [json.loads(line) for line in (out_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows if not kinds or row["kind"] in kinds]


def command(folder, out_dir, *more, model="arch: pair_mlp\npair_hidden: [16]\n"):
    """The command line of 04_train.py; more: further flags."""
    (folder / "model.yaml").write_text(model)
    (folder / "train.yaml").write_text("batch_size: 32\nmax_epochs: 3\n")
    return [ROOT / "src/04_train.py", "--dataset", folder / "dataset_k4.npz",
            "--model-config", folder / "model.yaml", "--train-config", folder / "train.yaml",
            "--splits", folder / "train.json", folder / "val.json", "--out-dir", out_dir, "--device", "cpu", *more]
