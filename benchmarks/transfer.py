"""Transfer: how many dear labels a network needs, from scratch and pretrained on a cheaper method.

Two studies, one molecule each: MMFF94 -> GFN2-xTB (ethanol) and GFN2-xTB -> PBE/def2-SVP (methanol).  The dear labels
are decorrelated frames of xTB dynamics at 400 K, validated on independent replicas; the cheap ones are thousands of
frames of the cheaper method's own dynamics.  Both sides take the same optimiser steps and choose one of the same
learning rates, on seed 0, where they are judged: from scratch at the full count, pretrained at a third.  The error is
that of the network at the last step, never of a chosen one.
Writes benchmarks/results/transfer.json and docs/transfer.png.

    python benchmarks/transfer.py
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dft import config_file
from guides import put
from kstep.files import write_json_atomic, write_json_compact
from kstep.forces import load_qm_config, physics_spec
from kstep.forces.local_pool import EvaluationPool
from kstep.molecules.molecule import Molecule
from kstep.schemas import load_dataset, load_trajectory, save_dataset
from kstep.training.labels import Labels
from kstep.units import NM_PER_ANGSTROM
from running import RESULTS, ROOT, here, machine, provenance, sh

GUIDE, MARK = ROOT / "MODELS.md", "<!-- transfer -->"
RESULT, FIGURE = RESULTS / "transfer.json", ROOT / "docs" / "transfer.png"
WORK = ROOT / "outputs" / "transfer"
SEEDS, PRETRAINING_LR = (0, 1, 2), 1e-2
TEMPERATURE_K, FRAME_FS = 400, 50  # frames further apart in time than a bond or an angle remembers
ROWS = 6400  # of a dataset: 100 steps of an epoch
VALIDATION_DFT = 120
CHUNK = 20  # DFT labels between two writes of the file
FORCE = "force_rmse_kJ_per_mol_A"
MM, XTB = "src/01_run_md_baselines.py", "src/01b_run_qm_baselines.py"


@dataclass(frozen=True)
class Study:
    """cheap, dear: method names; counts: of labels; the last is the full count, and a third of it is among them.

    network: a key of NETWORKS; steps: of the optimiser, on the dear labels and before on the cheap ones.
    """

    name: str
    smiles: str
    cheap: str
    dear: str
    counts: tuple[int, ...]
    network: str = "pair_mlp"
    steps: int = 2000
    pretraining_steps: int = 4000

    @property
    def full(self) -> int:
        return self.counts[-1]


STUDIES = {
    "mm_xtb": Study("ethanol", "CCO", "MMFF94", "GFN2-xTB", (25, 50, 100, 200, 600)),
    "mm_xtb_egnn": Study("ethanol", "CCO", "MMFF94", "GFN2-xTB", (50, 200, 600), "EGNN", steps=800,
                         pretraining_steps=2000),
    "xtb_dft": Study("methanol", "CO", "GFN2-xTB", "PBE/def2-SVP", (12, 25, 50, 100, 300)),
}
NETWORKS = {  # model YAML of configs/, train YAML, flags beside, learning rates to choose from
    "pair_mlp": ("model_pair_mlp.yaml", "train_pair_mlp.yaml", (), (3e-2, 1e-2, 3e-3, 1e-3)),
    "EGNN": ("model.yaml", "train.yaml", ("--set", "batch_size=16"), (1e-2, 3e-3)),
}


def frames(out: Path, script: str, name: str, smiles: Path, *, first: int, replicas: int, length_ps: float) -> Labels:
    """Thermostatted plain MD (velocities redrawn), every FRAME_FS a label of the method that moved it."""
    settings = {"temperature_K": TEMPERATURE_K, "dt_fs": 1, "save_interval_steps": FRAME_FS, "length_ps": length_ps,
                "equilibration_ps": 2, "hot_length_ps": 0, "redraw_interval_ps": 0.25}
    which = ("--molecule", WORK / "raw" / name) if script == MM else (
        "--smiles-file", smiles, "--molecule", name, "--raw", WORK / "raw", "--num-workers", 1)
    sh(out / name / "trajectory.npz", script, *which, "--out", out, "--first-replica", first, "--replicas", replicas,
       "--resume", *(word for pair in settings.items() for word in ("--set", "=".join(map(str, pair)))))
    run = load_trajectory(out / name / "trajectory.npz")
    kept = run.frames_of("train")
    # A redraw of velocities stores its frame twice.
    kept = kept[np.r_[True, np.abs(np.diff(run.pos[kept], axis=0)).max((1, 2)) > 0]]
    return Labels(run.pos[kept], run.Epot[kept], run.forces[kept], TEMPERATURE_K)


def dft_labels(out: Path, molecule: Molecule, positions: np.ndarray, config) -> Labels:
    """PBE labels of geometries (S,N,3), CHUNK at a time, so that an interrupted run goes on."""
    done = Labels.load(out)[0] if out.exists() else Labels.empty(len(molecule))
    with EvaluationPool(physics_spec(molecule, config, warm_start=False), 1) as pool:
        while len(done) < len(positions):
            chunk = positions[len(done):len(done) + CHUNK]
            truth = pool.evaluate(chunk)
            if done.append(chunk, truth.energy, truth.forces, TEMPERATURE_K) < len(chunk):
                sys.exit(f"an SCF of {out} did not converge: {next(m for m in truth.messages if m)}")
            done.save(out, molecule, method=config.method, true_calls=len(done), dt_fs=1.0)
            print(f"{out.name}: {len(done)} of {len(positions)}", flush=True)
    return done


def write_dataset(out: Path, molecule: Molecule, labels: Labels, validation: Labels, method: str) -> None:
    """Labels, repeated to ROWS so that no epoch is short, and the validation set in a block of its own."""
    if out.exists():
        return
    rows = np.resize(np.arange(len(labels)), ROWS)
    both = labels.select(rows)
    both.append(validation.positions, validation.energies, validation.forces, TEMPERATURE_K)
    both.save(out, molecule, method=method, true_calls=len(labels), dt_fs=1.0)
    arrays, metadata = load_dataset(out)
    arrays["block"] = np.where(np.arange(len(both)) < ROWS, 0, 9)
    save_dataset(out, arrays, metadata)


def train(out: Path, study: Study, dataset: Path, steps: int, lr: float, seed: int, *flags) -> dict:
    """04_train.py on a dataset; errors of the averaged weights after the last step."""
    model, recipe, own, _ = NETWORKS[study.network]
    config = WORK / model
    heads = "heads: {energy: true, jump: false}\n"
    config.write_text(re.sub(r"(?m)^heads:.*\n(  .*\n)*", heads, (ROOT / "configs" / model).read_text()))
    splits = (WORK / f"{study.name}_{part}.json" for part in ("train", "val"))
    here(out / "training.json", "src/04_train.py", "--dataset", dataset, "--model-config", config, "--train-config",
         f"configs/{recipe}", "--splits", *splits, "--max-steps", steps, "--seed", seed, "--out-dir", out,
         "--log-level", "warning", "--set", f"lr={lr}", "--set", "max_epochs=100000", *own, *flags)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if "force_rmse_kJ_per_mol_nm" in row][-1]
    if last["step"] != steps:
        sys.exit(f"{out} ended at step {last['step']} of {steps}; delete the folder and run again")
    return {FORCE: last["force_rmse_kJ_per_mol_nm"] * NM_PER_ANGSTROM,
            "energy_rmse_kJ_per_mol": last["energy_rmse_kJ_per_mol"],
            "wall_s": json.loads((out / "training.json").read_text())["wall_s"]}


def labels_of(study: Study, smiles: Path) -> tuple[Molecule, Labels, Labels, Labels]:
    """The molecule, its cheap labels, its dear ones in random order, and those of validation."""
    name = study.name
    sh(WORK / "raw" / name, "src/00_prep_mols.py", "--smiles", smiles, "--out-dir", WORK / "raw")
    molecule = Molecule.load(WORK / "raw" / name)
    first = 0 if study.cheap == "MMFF94" else 100
    dear = frames(WORK / f"{name}_dear", XTB, name, smiles, first=first, replicas=4, length_ps=10 if first == 0 else 5)
    validation = frames(WORK / f"{name}_validation", XTB, name, smiles, first=first + 100, replicas=2,
                        length_ps=5 if first == 0 else 4)
    dear = dear.select(np.random.default_rng(0).permutation(len(dear)))
    if study.dear != "GFN2-xTB":
        config = load_qm_config(config_file(WORK))
        validation = dft_labels(WORK / "dft_validation.npz", molecule, validation.positions[:VALIDATION_DFT], config)
        dear = dft_labels(WORK / "dft_dear.npz", molecule, dear.positions[:study.full], config)
    cheap = frames(WORK / f"{name}_cheap", MM if study.cheap == "MMFF94" else XTB, name, smiles, first=0, replicas=4,
                   length_ps=50)
    return molecule, cheap, dear, validation


def measure(key: str, study: Study, smiles: Path) -> dict:
    """Every training of a study; what is there is kept."""
    molecule, cheap, dear, validation = labels_of(study, smiles)
    if len(dear) < study.full:
        sys.exit(f"{len(dear)} dear labels are fewer than the full count {study.full}")
    folder, errors = WORK / key, {"scratch": {}, "pretrained": {}}
    write_dataset(folder / "cheap.npz", molecule, cheap, validation, study.cheap)
    starts = [folder / f"pretraining_{seed}" for seed in SEEDS]
    before = [train(start, study, folder / "cheap.npz", study.pretraining_steps, PRETRAINING_LR, seed)
              for seed, start in zip(SEEDS, starts)]
    sides, chosen = {"scratch": study.full, "pretrained": study.full // 3}, {}
    for n in study.counts:
        for seed in SEEDS:
            rows = np.random.default_rng([seed, 7]).permutation(study.full)[:n]
            write_dataset(folder / f"n{n}_{seed}.npz", molecule, dear.select(rows), validation, study.dear)
    for side, tuned_at in sides.items():
        def once(n, seed, lr, side=side):
            start = ("--pretrained", starts[seed] / "last.pt") if side == "pretrained" else ()
            out = folder / side / f"n{n}_{seed}_{lr}"
            return train(out, study, folder / f"n{n}_{seed}.npz", study.steps, lr, seed, *start)

        lr = chosen[side] = min(NETWORKS[study.network][3], key=lambda rate: once(tuned_at, SEEDS[0], rate)[FORCE])
        for n in study.counts:
            errors[side][n] = [once(n, seed, lr) for seed in SEEDS]
            print(f"{key} {side} {n}: {[round(row[FORCE], 2) for row in errors[side][n]]}", flush=True)
    rms = float(np.sqrt(np.square(validation.forces).mean())) * NM_PER_ANGSTROM
    return {"molecule": study.name, "network": study.network, "steps": study.steps,
            "pretraining_steps": study.pretraining_steps, "lrs": NETWORKS[study.network][3],
            "cheap": study.cheap, "dear": study.dear, "full": study.full,
            "cheap_labels": len(cheap), "validation_labels": len(validation), "force_rms_kJ_per_mol_A": rms,
            "lr": chosen, "before": before, "errors": errors, **efficiency(study, errors)}


def mean_error(found: list[dict]) -> float:
    """Geometric mean over seeds of the force error, kJ/mol/A."""
    return float(np.exp(np.mean([np.log(row[FORCE]) for row in found])))


def efficiency(study: Study, errors: dict) -> dict:
    """Labels with which the pretrained network is as good as the one from scratch with all of them.

    needed: by interpolation between the counts, both logarithmic; None where it never is.
    needed_on_grid: the least count of those measured that does it.
    """
    bar = mean_error(errors["scratch"][study.full])
    counts = np.array(study.counts, dtype=float)
    means = np.array([mean_error(errors["pretrained"][n]) for n in study.counts])
    good = np.flatnonzero(means <= bar)
    out = {"bar_kJ_per_mol_A": bar, "needed": None, "needed_on_grid": None, "needed_by_seed": []}
    if len(good):
        out["needed_on_grid"] = int(counts[good[0]])
        out["needed"] = crossing(counts, means, bar)
    for i in range(len(SEEDS)):
        own = np.array([errors["pretrained"][n][i][FORCE] for n in study.counts])
        out["needed_by_seed"].append(crossing(counts, own, errors["scratch"][study.full][i][FORCE]))
    return out


def crossing(counts: np.ndarray, means: np.ndarray, bar: float) -> float | None:
    """Where the errors first come down to the bar, on straight lines between logarithms; the least count at most."""
    good = np.flatnonzero(means <= bar)
    if not len(good):
        return None
    i = int(good[0])
    if i == 0:
        return float(counts[0])
    part = np.log(means[i - 1] / bar) / np.log(means[i - 1] / means[i])
    return float(np.exp(np.log(counts[i - 1]) + part * np.log(counts[i] / counts[i - 1])))


def plot(data: dict) -> None:
    """Error against labels, both studies side by side."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    n = len(data["studies"])
    figure, axes = plt.subplots(1, n, figsize=(4.3 * n, 3.8), layout="constrained", squeeze=False)
    for axis, study in zip(axes[0], data["studies"].values()):
        titles = {"scratch": ("C0", "from scratch"), "pretrained": ("C1", f"pretrained on {study['cheap']}")}
        for side, (colour, words) in titles.items():
            counts = sorted(map(int, study["errors"][side]))
            rows = [[row[FORCE] for row in study["errors"][side][str(n)]] for n in counts]
            axis.fill_between(counts, [min(r) for r in rows], [max(r) for r in rows], color=colour, alpha=0.25, lw=0)
            axis.plot(counts, [float(np.exp(np.mean(np.log(r)))) for r in rows], "o-", color=colour, ms=4, label=words)
        third = study["full"] / 3
        axis.axhline(study["bar_kJ_per_mol_A"], color="0.4", lw=1, ls=":")
        axis.axvline(third, color="0.4", lw=1, ls="--", label=f"a third of {study['full']} labels")
        axis.set(xscale="log", yscale="log", xlabel=f"{study['dear']} labels",
                 ylabel="validation force error, kJ/mol/$\\AA$")
        axis.set_title(f"{study['molecule']}, {study['network']}: {study['cheap']} $\\to$ {study['dear']}", fontsize=9)
        axis.set_xticks(counts, map(str, counts))
        axis.minorticks_off()
        axis.yaxis.set_major_formatter("{x:g}")
        low, high = axis.get_ylim()
        axis.set_yticks([t for t in (0.5, 1, 2, 5, 10, 20, 50, 100, 200) if low <= t <= high])
        axis.legend(frameon=False, fontsize=8)
    figure.savefig(FIGURE, dpi=110)


def table(data: dict) -> str:
    """The table of MODELS.md."""
    studies = list(data["studies"].values())

    def row(label, show):
        return f"| {label} | " + " | ".join(show(study) for study in studies) + " |"

    def error(side, n):
        return lambda study: f"{mean_error(study['errors'][side][str(n(study))]):.2f} ({n(study)})"

    def needed(study):
        if study["needed"] is None:
            return "more than all"
        seeds = ", ".join("-" if n is None else f"{n:.0f}" for n in study["needed_by_seed"])
        few = "at most " if study["needed"] <= min(map(int, study["errors"]["pretrained"])) else ""
        return f"{few}{study['needed']:.0f} = {study['needed'] / study['full']:.2f} of all (seeds: {seeds})"

    def met(study):
        return "yes" if study["needed"] is not None and study["needed"] <= study["full"] / 3 else "no"

    return "\n".join([
        "| | " + " | ".join(f"{s['cheap']} -> {s['dear']}, {s['molecule']}, {s['network']}" for s in studies) + " |",
        "|---" * (len(studies) + 1) + "|",
        row("optimiser steps (of pretraining)", lambda s: f"{s['steps']:,} ({s['pretraining_steps']:,})"),
        row("learning rate from scratch, pretrained", lambda s: f"{s['lr']['scratch']:g}, {s['lr']['pretrained']:g}"),
        row("rms of the forces, kJ/mol/A", lambda s: f"{s['force_rms_kJ_per_mol_A']:.0f}"),
        row("force error pretrained, before any dear label", lambda s: f"{mean_error(s['before']):.0f}"),
        row("from scratch, all labels", error("scratch", lambda s: s["full"])),
        row("from scratch, a third of them", error("scratch", lambda s: s["full"] // 3)),
        row("pretrained, a third of them", error("pretrained", lambda s: s["full"] // 3)),
        row("pretrained, all labels", error("pretrained", lambda s: s["full"])),
        row("labels with which pretrained is as good as all from scratch", needed),
        row("a third or fewer", met)])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", nargs="+", choices=list(STUDIES), default=list(STUDIES))
    args = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    smiles = WORK / "molecules.smi"
    smiles.write_text("".join(f"{study.smiles} {study.name}\n" for study in STUDIES.values()))
    for part, block in (("train", 0), ("val", 9)):
        for study in STUDIES.values():
            write_json_atomic(WORK / f"{study.name}_{part}.json", {"molecules": [study.name], "blocks": [block]})
    data = json.loads(RESULT.read_text()) if RESULT.exists() else {"studies": {}}
    for key in args.studies:
        data["studies"][key] = measure(key, STUDIES[key], smiles)
        data.update(machine=machine(), seeds=SEEDS, pretraining_lr=PRETRAINING_LR, temperature_K=TEMPERATURE_K,
                    frame_fs=FRAME_FS, **provenance())
        write_json_compact(RESULT, data)
    data = json.loads(RESULT.read_text())
    plot(data)
    put(GUIDE, MARK, table(data))


if __name__ == "__main__":
    main()
