"""Throughput of training on one CPU thread, before and after: windows per second, and where the time goes.

Trains each network on k = 8 windows of ethanol (MMFF94) with the config it is used with, from this tree and from
an older commit in turns, and takes the best of the turns.  Clocks count CPU seconds of one thread, which
a shared machine does not stretch.  Writes benchmarks/results/training_throughput.json.

    python benchmarks/training_throughput.py
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

from kstep.files import write_json_compact
from running import RESULTS, ROOT, git_commit, machine, provenance, sh

BEFORE = "3b7475f"  # the last commit whose training loop had not been looked at for speed
CASES = {  # network: model config, its changes, train config
    "egnn, jump": ("model.yaml", {}, "train.yaml"),
    "egnn, energy": ("model.yaml", {"heads": {"energy": True, "jump": False}}, "train.yaml"),
    "transformer_egnn, energy": ("model_transformer.yaml", {}, "train.yaml"),
    "pair_mlp": ("model_pair_mlp.yaml", {}, "train_pair_mlp.yaml"),
}
# Runs in a process of its own, on the package of either tree; prints one JSON object.
MEASURE = '''
import json, sys, tempfile, time
from collections import defaultdict
import torch
from kstep.config import load_config
from kstep.models import build_model
from kstep.models.model_config import ModelConfig
from kstep.schemas import load_dataset
from kstep.training import losses, normalisation as normalise, optimiser, window_training as loop
from kstep.training.batches import Windows
from kstep.training.train_config import TrainConfig
from kstep.training.splits import select
from kstep.training.initial_weights import facts_of
work, configs, model_file, changes, train_file, steps, device, settings = sys.argv[1:9]
steps, spent, clock = int(steps), defaultdict(float), time.process_time if device == "cpu" else time.perf_counter

def timed(owner, name, part):
    function = getattr(owner, name)
    def wrapped(*args, **more):
        began = clock()
        try:
            return function(*args, **more)
        finally:
            spent[part] += clock() - began
    setattr(owner, name, wrapped)

arrays, metadata = load_dataset(f"{work}/dataset_k8.npz")
train, val = (select(arrays, metadata, json.load(open(f"{work}/splits/{part}.json"))) for part in ("train", "val"))
config = load_config(ModelConfig, f"{configs}/{model_file}", json.loads(changes))
changes = {"max_epochs": 1000, "validation_samples": 1, **json.loads(settings)}
how = load_config(TrainConfig, f"{configs}/{train_file}", changes)
torch.manual_seed(0)
torch.set_num_threads(1)
model = build_model(config, Windows.molecule_of(0, arrays)).to(device)
data, rows = Windows(arrays, metadata, device), torch.as_tensor(train, device=device)
normalise.fit(model, data, rows)
scales = normalise.scales(data, rows)
if device == "cpu":  # a GPU works on while Python goes on, and what a part takes there is not known
    timed(Windows, "batch", "batches")
    for name in ("energy_terms", "jump_terms"):
        timed(losses, name, "loss terms")
    timed(torch.Tensor, "backward", "backward")
    timed(torch.nn.utils, "clip_grad_norm_", "clipping")
    timed(torch.optim.AdamW, "step", "optimiser")
    timed(optimiser.MovingAverage, "update", "average of weights")
timed(loop, "validate", "validation")
marks = []
def watch(step):
    if step in (steps // 5, steps):
        if device != "cpu":
            torch.cuda.synchronize()
        marks.append((clock(), dict(spent)))
    return step == steps
with tempfile.TemporaryDirectory() as out:
    loop.train(model, data, train, val, how, scales, out_dir=out, progress=False, should_stop=watch,
               facts=facts_of(arrays, metadata, train, f"{work}/dataset_k8.npz", config))
(first, before), (last, after) = marks[0], marks[-1]
parts = {part: after[part] - before.get(part, 0.0) for part in after}
validation = parts.pop("validation", 0.0)
whole, n = last - first - validation, steps - steps // 5
parts["rest"] = whole - sum(parts.values())
per_step = len(train) / -(-len(train) // how.batch_size)  # windows; the last step of an epoch takes what is left
print(json.dumps({"windows_per_s": round(n * per_step / whole, 1), "ms_per_step": round(1e3 * whole / n, 3),
                  "batch_size": how.batch_size, "parameters": sum(p.numel() for p in model.parameters()),
                  "percent_of_time": {part: round(100 * s / whole, 1) for part, s in parts.items()}}))
'''


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", default=BEFORE, help="commit to compare with")
    parser.add_argument("--steps", type=int, default=300, help="optimiser steps of a turn, the first fifth untimed")
    parser.add_argument("--turns", type=int, default=3, help="measurements of each tree")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--work", type=Path, default=ROOT / "outputs" / "training_throughput")
    parser.add_argument("--out", type=Path, default=RESULTS / "training_throughput.json")
    return parser.parse_args()


def make_windows(work: Path) -> None:
    """Ethanol from its SMILES to windows, with the force field."""
    work.mkdir(parents=True, exist_ok=True)
    (work / "ethanol.smi").write_text("CCO ethanol\n")
    sh(work / "raw/ethanol", "src/00_prep_mols.py", "--smiles", work / "ethanol.smi", "--out-dir", work / "raw")
    sh(work / "md/ethanol/trajectory.npz", "src/01_run_md_baselines.py", "--molecule", work / "raw/ethanol", "--config",
       "configs/md_fast.yaml", "--set", "length_ps=4", "--set", "dt_fs=0.5", "--set", "hot_length_ps=2", "--out",
       work / "md")
    sh(work / "dataset_k8.npz", "src/02_make_dataset.py", "--md-root", work / "md", "--out-root", work, "--splits-dir",
       work / "splits", "--ks", "8")


def older_tree(commit: str, work: Path) -> Path:
    """The package and configs of a commit, in a folder."""
    tree = work / f"tree_{commit}"
    if not tree.exists():
        packed = subprocess.run(["git", "archive", commit, "src", "configs"], cwd=ROOT, check=True, capture_output=True)
        with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
            archive.extractall(tree, filter="data")
    return tree


def measure(tree: Path, case: str, work: Path, steps: int, device: str = "cpu", settings: dict | None = None) -> dict:
    """One training of `steps` steps with the package of a tree: CPU seconds of a thread, or on a GPU those of a clock.

    settings: keys of the train config to be changed.  RuntimeError, with what was said, where it fails.
    """
    model, changes, train = CASES[case]
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    words = [work, tree / "configs", model, json.dumps(changes), train, str(steps), device, json.dumps(settings or {})]
    done = subprocess.run([sys.executable, "-c", MEASURE, *words], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{case} in {tree} failed:\n{done.stderr}")
    return json.loads(done.stdout)


def main():
    args = parse()
    make_windows(args.work)
    trees = {"before": older_tree(args.before, args.work), "after": ROOT}
    result = {"commits": {"before": args.before, "after": git_commit()}, "machine": machine(), **provenance(),
              "clock": "CPU seconds of one thread", "steps": args.steps, "turns": args.turns, "networks": {}}
    for case in args.cases:
        turns = {name: [] for name in trees}
        for _ in range(args.turns):
            for name, tree in trees.items():
                turns[name].append(measure(tree, case, args.work, args.steps))
        best = {name: max(own, key=lambda turn: turn["windows_per_s"]) for name, own in turns.items()}
        best["all_windows_per_s"] = {name: [turn["windows_per_s"] for turn in own] for name, own in turns.items()}
        best["times_faster"] = round(best["after"]["windows_per_s"] / best["before"]["windows_per_s"], 2)
        result["networks"][case] = best
        print(case, json.dumps(best, indent=1), flush=True)
    write_json_compact(args.out, result)
    print(f"-> {args.out}")


if __name__ == "__main__":
    main()
