"""Train a network on a dataset of windows: <out-dir>/best.pt, last.pt, metrics.jsonl.

    kstep train data/qm/dataset_k8.npz --model-config model_pair_mlp --train-config train_pair_mlp
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from kstep.cli.flags import add_common_arguments, add_overwrite, add_subject, filled, positive_int
from kstep.cli.program import log_beside, setup_logging
from kstep.config import load_config, parse_assignments


def add_flags(parser, numbered: str | None = None) -> None:
    """Flags of `kstep train`, or of 04."""
    data = parser.add_argument_group("data and configs")
    add_subject(data, "dataset", numbered, type=Path, help="dataset_k{k}.npz of 02_make_dataset.py (kstep dataset)")
    data.add_argument("--model-config", type=Path, default=Path("configs/model.yaml"), help="YAML of the network")
    data.add_argument("--train-config", type=Path, default=Path("configs/train.yaml"), help="YAML of the training")
    data.add_argument("--splits", type=Path, nargs=2, metavar=("TRAIN", "VAL"),
                      help="split files of 02_make_dataset.py (default: data/splits/train.json data/splits/val.json)")
    data.add_argument("--out-dir", type=Path, default=Path("outputs/checkpoints"), help="folder for checkpoints")
    start = parser.add_argument_group("start and end")
    start.add_argument("--resume", action="store_true", help="continue from <out-dir>/last.pt")
    add_overwrite(start)
    start.add_argument("--pretrained", type=Path, metavar="CHECKPOINT",
                       help="network to start from, of this or of a cheaper method; reference energies are refitted")
    start.add_argument("--teacher", type=Path, metavar="CHECKPOINT",
                       help="learn from this energy network, as distill_* of the train config say, without any true "
                            "call")
    start.add_argument("--freeze-layers", nargs="+", default=[], metavar="N", dest="frozen",
                       help="keep the embedding and the first N rounds of messages (pair_mlp: hidden layers) as they "
                            "are; or the parameters whose names start so, e.g. jump_head.springs")
    start.add_argument("--max-steps", type=positive_int, help="optimiser steps; shortens the schedule of max_epochs")
    add_common_arguments(parser, device=True, overrides=True)
    parser.set_defaults(splits=[Path("data/splits/train.json"), Path("data/splits/val.json")])


def run(args) -> int:
    """Train, alone or as one process of torchrun, and print the validation."""
    from kstep.models.device import pick_device
    from kstep.models.model_config import ModelConfig
    from kstep.stages.network_training import TrainingSettings, train_network
    from kstep.training.distributed import joined
    from kstep.training.train_config import TrainConfig

    with joined(pick_device(args.device)) as (group, device):
        setup_logging(args.log_level if group.is_first else "error")
        given = parse_assignments(args.assignments)
        of_model = {key: given.pop(key) for key in list(given) if key in ModelConfig.model_fields}
        settings = filled(TrainingSettings, args, model_config=load_config(ModelConfig, args.model_config, of_model),
                          config=load_config(TrainConfig, args.train_config, given),
                          progress=args.log_level in ("debug", "info"))
        with log_beside(args.out_dir / "training") if group.is_first else nullcontext():
            trained = train_network(settings, group, device)
        if group.is_first:
            for name, value in trained.teacher.items():
                print(f"  teacher's {name:28s} {value:.6g}")
            for name, value in trained.best.items():
                print(f"  {name:28s} {value:.6g}")
            print(f"{trained.steps} steps in {trained.wall_s:.0f} s ({trained.reason}); "
                  f"checkpoints: {args.out_dir}/best.pt, last.pt")
        return 130 if trained.interrupted else 0
