"""EGNN, Transformer-EGNN and pair_mlp on the same data with the same CPU time of training: ethanol, GFN2-xTB.

Energy networks: force and energy error on replicas that no training saw, time per evaluation, and the acceptance of
metropolis with each.  Jump networks (pair_mlp has no jump head): error of one jump.  Writes
benchmarks/results/models.json.

    python benchmarks/models.py
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import ethanol
from guides import put
from kstep.files import write_json_compact
from kstep.schemas import load_trajectory
from kstep.units import NM_PER_ANGSTROM
from running import RESULTS, ROOT, machine, provenance, sh

RESULT, GUIDE, MARK = RESULTS / "models.json", ROOT / "MODELS.md", "<!-- models -->"
WORK = ROOT / "outputs" / "models"
BUDGET_S = 80
LRS = (1e-2, 3e-3)
JUMP_K = 16
RUN = ("--scheme", "metropolis", "--k-steps", 200, "--dt-fs", 0.5, "--replicas", 64, "--steps", 8, "--burn-in-steps", 2,
       "--set", "length_law=fixed", "--num-workers", 1)
NETWORKS = {"egnn": ("EGNN", "model.yaml", "train.yaml"),
            "transformer_egnn": ("Transformer-EGNN", "model_transformer.yaml", "train.yaml"),
            "pair_mlp": ("pair_mlp", "model_pair_mlp.yaml", "train_pair_mlp.yaml")}


def model_config(arch: str, head: str) -> Path:
    """The arch's YAML of configs/ with one head."""
    text = (ROOT / "configs" / NETWORKS[arch][1]).read_text()
    heads = f"heads: {{energy: {head == 'energy'}, jump: {head == 'jump'}}}\n".lower()
    text = re.sub(r"(?m)^heads:.*\n(  .*\n)*", heads, text)
    path = WORK / f"{arch}_{head}.yaml"
    path.write_text(text)
    return path


def latency(arch: str, config: Path, repeats: int) -> dict:
    """us per energy and forces of ethanol at 1 and 64 replicas, as 03_model.py times them; the best of its runs."""
    best = {}
    for repeat in range(repeats):
        log = WORK / f"{arch}_latency_{repeat}.txt"
        if not log.exists():
            words = [sys.executable, "src/03_model.py", "--model-config", str(config)]
            text = subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True).stdout
            log.write_text(text)
        for replicas, us in re.findall(r"ethanol .* batch +(\d+) .*?\*\s+([\d.]+)", log.read_text()):
            best[replicas] = min(float(us), best.get(replicas, float("inf")))
    return best


def judge(arch: str, data: dict, repeats: int) -> dict:
    """Every figure of one architecture."""
    title, _, recipe = NETWORKS[arch]
    out = {"title": title}
    for head in ("energy", "jump"):
        if head == "jump" and arch == "pair_mlp":
            continue
        config = model_config(arch, head)
        training = ethanol.Training(WORK / arch / head, ethanol.dataset("train", JUMP_K), config, f"configs/{recipe}",
                                    data["splits"], LRS)
        done = training.within(BUDGET_S)
        checkpoint = training.out / "final" / "last.pt"
        found = ethanol.errors(checkpoint, ethanol.dataset("test", JUMP_K))
        out[head] = {"parameters": done["parameters"], "steps": done["steps"], "cpu_s": done["cpu_s"], "lr": done["lr"],
                     "batch_size": 64 if arch == "pair_mlp" else 32, **found}
    out["latency_us"] = latency(arch, model_config(arch, "energy"), repeats)
    run = WORK / arch / "metropolis.npz"
    sh(run, "src/06b_hybrid_integrate_qm.py", "--molecule", data["molecule"], "--checkpoint",
       WORK / arch / "energy" / "final" / "last.pt", "--initial-md", data["test"], "--out", run, *RUN)
    metadata = load_trajectory(run).metadata
    kept = ("acceptance", "true_calls", "k_steps", "dt_fs", "wall_production_s")
    out["metropolis"] = {key: metadata[key] for key in kept} | {"proposals": metadata["tally"]["macro_steps"]}
    return out


def table(data: dict) -> str:
    """The table of MODELS.md."""
    nets = [data["networks"][arch] for arch in NETWORKS if arch in data["networks"]]

    def row(label, show):
        return f"| {label} | " + " | ".join(show(net) for net in nets) + " |"

    def energy(form):
        return lambda net: form(net["energy"])

    def jump(form):
        return lambda net: form(net["jump"]) if "jump" in net else "no jump head"

    angstrom = 1 / NM_PER_ANGSTROM
    lines = ["| | " + " | ".join(net["title"] for net in nets) + " |", "|---" * (len(nets) + 1) + "|",
             row("parameters of the energy network", energy(lambda e: f"{e['parameters']:,}")),
             row("optimiser steps x batch in the budget", energy(lambda e: f"{e['steps']:,} x {e['batch_size']}")),
             row("CPU s of that training", energy(lambda e: f"{e['cpu_s']:.0f}")),
             row("force error, kJ/mol/A", energy(lambda e: f"{e['force_rmse_kJ_per_mol_nm'] / angstrom:.2f}")),
             row("energy error, kJ/mol", energy(lambda e: f"{e['energy_rmse_kJ_per_mol']:.2f}")),
             row("us per energy and forces, 1 replica", lambda net: f"{net['latency_us']['1']:.0f}"),
             row("us per replica, 64 replicas", lambda net: f"{net['latency_us']['64']:.1f}"),
             row("acceptance of metropolis", lambda net: f"{net['metropolis']['acceptance']:.3f}"),
             row(f"one jump of {data['jump_fs']:g} fs: steps x batch",
                 jump(lambda j: f"{j['steps']:,} x {j['batch_size']}")),
             row("position error, A", jump(lambda j: f"{j['dx_rmse_nm'] * angstrom:.1e}")),
             row("of its propagator alone", jump(lambda j: f"{j['propagator_dx_rmse_nm'] * angstrom:.1e}"))]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--latency-repeats", type=int, default=2,
                        help="runs of 03_model.py, of which the fastest counts")
    args = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    data = ethanol.data()
    old = json.loads(RESULT.read_text())["networks"] if RESULT.exists() else {}
    found = old | {arch: judge(arch, data, args.latency_repeats) for arch in args.networks}
    result = {"molecule": "ethanol", "method": "GFN2-xTB", "machine": machine(), **provenance(),
              "budget_cpu_s": BUDGET_S, "lrs": LRS, "jump_fs": JUMP_K * ethanol.DT_FS,
              "networks": {arch: found[arch] for arch in NETWORKS if arch in found}}
    write_json_compact(RESULT, result)
    put(GUIDE, MARK, table(result))
    print(table(result))


if __name__ == "__main__":
    main()
