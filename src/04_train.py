"""Train a network on a dataset of windows: <out-dir>/best.pt, last.pt, metrics.jsonl.

The model config says which network and which heads (energy, jump), the train config how; loss
terms, schedules and units are explained in configs/train.yaml.  best.pt holds the averaged
weights with the lowest validation loss, last.pt what --resume needs.  Ctrl-C ends the step in
progress and writes both.  Several processes or GPUs share each batch:
torchrun --nproc_per_node 2 src/04_train.py ...

    python src/04_train.py --dataset data/qm/dataset_k8.npz --model-config configs/model_pair_mlp.yaml \\
        --train-config configs/train_pair_mlp.yaml --splits data/splits/train.json data/splits/val.json
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from kstep.config import load_config, parse_assignments
from kstep.errors import UserError
from kstep.files import check_writable
from kstep.learning.teacher_labels import labels_of_teacher
from kstep.models import build_model, checkpoint as checkpoints
from kstep.models.model_config import ModelConfig
from kstep.schemas import load_dataset
from kstep.training import distillation as distill, distributed as parallel, losses, normalisation as normalise
from kstep.training.batches import Windows
from kstep.training.initial_weights import (
    check_dynamics,
    check_same_data,
    facts_of,
    facts_of_transfer,
    freeze,
    transfer,
)
from kstep.training.loop import train
from kstep.training.splits import select
from kstep.training.train_config import TrainConfig
from kstep.training.validation_error import validate
from utils import (
    add_common_arguments,
    log,
    make_parser,
    pick_device,
    positive_int,
    read_json,
    run_script,
    setup_logging,
    write_json_atomic,
)


def parse():
    parser = make_parser(__doc__)
    parser.add_argument("--dataset", type=Path, required=True, help="dataset_k{k}.npz of 02_make_dataset.py")
    parser.add_argument("--model-config", type=Path, default=Path("configs/model.yaml"), help="YAML of the network")
    parser.add_argument("--train-config", type=Path, default=Path("configs/train.yaml"), help="YAML of the training")
    parser.add_argument("--splits", type=Path, nargs=2, metavar=("TRAIN", "VAL"),
                        help="split files of 02_make_dataset.py (default: data/splits/train.json data/splits/val.json)")
    parser.add_argument("--out-dir", type=Path, default=Path("outputs/checkpoints"), help="folder for checkpoints")
    parser.add_argument("--resume", action="store_true", help="continue from <out-dir>/last.pt")
    parser.add_argument("--pretrained", type=Path, metavar="CHECKPOINT",
                        help="network to start from, of this or of a cheaper method; reference energies are refitted")
    parser.add_argument("--teacher", type=Path, metavar="CHECKPOINT",
                        help="learn from this energy network, as distill_* of the train config say, without any true call")
    parser.add_argument("--freeze-layers", nargs="+", default=[], metavar="N",
                        help="keep the embedding and the first N rounds of messages (pair_mlp: hidden layers) as they "
                             "are; or the parameters whose names start so, e.g. jump_head.springs")
    parser.add_argument("--max-steps", type=positive_int, help="optimiser steps; shortens the schedule of max_epochs")
    add_common_arguments(parser, device=True, overrides=True)
    parser.set_defaults(splits=[Path("data/splits/train.json"), Path("data/splits/val.json")])
    return parser.parse_args()


def main():
    args = parse()
    with parallel.joined(pick_device(args.device)) as (group, device):
        setup_logging(args.log_level if group.is_first else "error")
        return run(args, group, device)


def run(args, group: parallel.Group, device: str) -> int:
    """One process of the training; the exit code."""
    given = parse_assignments(args.assignments)
    of_model = {key: given.pop(key) for key in list(given) if key in ModelConfig.model_fields}
    model_config = load_config(ModelConfig, args.model_config, of_model)
    config = load_config(TrainConfig, args.train_config, given)
    losses.check_weights(config, model_config.heads)
    arrays, metadata = load_dataset(args.dataset)
    check_dynamics(metadata, model_config.heads, args.dataset)
    train_windows, val_windows = (select(arrays, metadata, read_json(path), str(path)) for path in args.splits)
    if not len(train_windows) or not len(val_windows):
        raise UserError(f"a split of {args.dataset} is empty: {len(train_windows)} windows to train, "
                        f"{len(val_windows)} to validate")
    if np.intersect1d(train_windows, val_windows).size:
        raise UserError(f"{args.splits[0]} and {args.splits[1]} share windows; run 02_make_dataset.py again")
    for name in ("best.pt", "last.pt"):
        check_writable(args.out_dir / name)
    facts = facts_of(arrays, metadata, train_windows, args.dataset, model_config.arch)
    if args.teacher:
        teacher = checkpoints.load(args.teacher)
        chosen = np.concatenate([train_windows, val_windows])
        molecule = distill.check_teacher(teacher, args.teacher, model_config, arrays, chosen, args.out_dir)
        facts = distill.facts_of_student(facts, teacher, args.teacher, config)
        with group.first_alone():  # the others read what it has written
            arrays, train_windows, val_windows = distill.once(
                args.out_dir, facts, metadata, args.resume or not group.is_first,
                lambda: labels_of_teacher(args.teacher, arrays, metadata, train_windows, val_windows, molecule, config,
                                          seed=args.seed, device=device))

    torch.manual_seed(args.seed)
    molecule = Windows.molecule_of(int(arrays["molecule_id"][train_windows[0]]), arrays)
    model = build_model(model_config, molecule)
    data = Windows(arrays, metadata, device)
    model.to(device)
    on_device = torch.as_tensor(train_windows, device=device)
    normalise.fit(model, data, on_device)
    resume = None
    if args.resume:
        path = args.out_dir / "last.pt"
        resume = checkpoints.load(path, device)
        check_same_data(resume, facts, path, exactly=True)
        if resume["config"] != model_config.model_dump():
            raise UserError(f"{path} was trained with another model config; train without --resume")
        facts |= {key: resume[key] for key in ("pretrained", "true_calls_training") if key in resume}
    elif args.pretrained:
        checkpoint = checkpoints.load(args.pretrained, device)
        check_same_data(checkpoint, facts, args.pretrained, exactly=False)
        transfer(model, checkpoint, args.pretrained, data, on_device)
        facts = facts_of_transfer(facts, checkpoint, args.pretrained)
    freeze(model, args.freeze_layers)

    size = sum(p.numel() for p in model.parameters())
    log.info("%s, %d parameters; %d windows to train, %d to validate; %s", model_config.arch, size,
             len(train_windows), len(val_windows), device)
    outcome = train(model, data, train_windows, val_windows, config, normalise.scales(data, on_device),
                    out_dir=args.out_dir, facts=facts, seed=args.seed, max_steps=args.max_steps, resume=resume,
                    progress=args.log_level in ("debug", "info"), group=group)
    if not group.is_first:
        return 130 if outcome.interrupted else 0
    errors = {}
    if args.teacher:
        judged = torch.as_tensor(val_windows, device=device)
        errors = validate(checkpoints.model_from(teacher, args.teacher, device), data, judged, config,
                          normalise.scales(data, on_device))
        for key, value in errors.items():
            print(f"  teacher's {key:28s} {value:.6g}")
    if not outcome.interrupted:  # quickstart.sh takes this file for a finished training
        write_json_atomic(args.out_dir / "training.json", {
            "best": outcome.best, "reason": outcome.reason, "steps": outcome.steps, "epochs": outcome.epochs,
            "wall_s": outcome.wall_s, "device": device, "parameters": size,
            "true_calls_training": facts["true_calls_training"], "teacher": errors})
    for name, value in outcome.best.items():
        print(f"  {name:28s} {value:.6g}")
    print(f"{outcome.steps} steps in {outcome.wall_s:.0f} s ({outcome.reason}); "
          f"checkpoints: {args.out_dir}/best.pt, last.pt")
    return 130 if outcome.interrupted else 0


if __name__ == "__main__":
    run_script(main)
