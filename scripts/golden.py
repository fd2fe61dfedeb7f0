"""Golden results: small runs of every scheme, backend, learner, trainer and evaluation, and whether two recordings of
them are the same bits.

    python scripts/golden.py record OUT [--tree TREE]      run every case with the scripts of TREE, two at a time
    python scripts/golden.py compare OUT_A OUT_B           exit code 1 if anything differs

A change that should change no result is recorded before and after it, on one machine with one set of libraries, and
then compared.  `record` takes some minutes of two cores; OUT/work/<case> is what a case wrote, OUT/logs/<case>.log what
it said.  `compare` holds arrays of .npz, tensors of .pt and numbers of .json against each other, but no clocks, paths
and versions; of the metadata of an npz it reads what PHYSICS names.

What the clock decides is pinned, or not here: `inner` is always given, --tune is never asked for (so neither is
07_benchmark.py), and the teacher of the distillation is no pair_mlp, of which two ways would be timed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

AT_ONCE = 2
MOST_LISTED = 5  # differences of one file
PHYSICS = {"true_calls", "true_calls_training", "acceptance", "mean_exp_minus_beta_dH", "tally", "swap_acceptance",
           "certificate", "status", "scheme", "k_steps", "dt_fs", "jump_fs"}
CLOCK = re.compile(r"wall|cpu|elapsed|faster")  # keys that hold times, or rest on them

TINY = {
    "mols.smi": "CCO ethanol\nCO methanol\nNCC(=O)O glycine\nO water\n",
    "pair.yaml": "arch: pair_mlp\npair_hidden: [48, 48]\n",
    "both.yaml": "arch: egnn\nheads: {energy: true, jump: true}\nuse_force_head: true\nhidden_dim: 8\nvector_dim: 4\n"
                 "num_layers: 2\nnum_rbf: 6\n",
    "learn.yaml": "learn_replicas: 4\nbootstrap_labels_per_atom: 6\nlearn_moves: 2\nlearn_move_fs: 20\n"
                  "inner_dt_fs: 1.0\nround_passes: 40\nround_growth: 0.5\nfit_cost_calls: 1\nverify_proposals: 16\n"
                  "max_true_calls: 120\nfit_passes: 80\nfit_lr: 0.02\n",
}

# Command lines: @ is the folder of the case; src/, configs/ and data/ are those of the tree, tiny/ holds TINY; any
# other path lies in the folder of an earlier case, which is waited for.  until:FILE kills a command once FILE is there.
QM = "src/01b_run_qm_baselines.py --smiles-file tiny/mols.smi --raw prep --config configs/qm_fast.yaml --out @"
SHORT = "--set equilibration_ps=0.01 --set length_ps=0.02 --set redraw_interval_ps=0.01 --set hot_length_ps=0.005"
TRAIN = "src/04_train.py --splits data_qm/splits/train.json data_qm/splits/val.json --out-dir @ --device cpu"
EGNN = "--set hidden_dim=16 --set vector_dim=8 --set num_layers=2 --set batch_size=32"
RUN = ("--hybrid-config configs/hybrid.yaml --device cpu --out @/run.npz --steps 20 --burn-in-steps 2 --replicas 4 "
       "--num-workers 1")
SMILES = f"src/06b_hybrid_integrate_qm.py --qm-config configs/qm_fast.yaml {RUN}"
HYBRID = f"{SMILES} --molecule prep/ethanol --initial-md qm/ethanol/trajectory.npz"
PAIR = f"{HYBRID} --checkpoint train_pair/best.pt --set inner=numpy --scheme"
METROPOLIS = f"{PAIR} metropolis --k-steps 10 --dt-fs 0.5"
MOVES = "nested --moves 2 --k-steps 20 --dt-fs 0.5"
NESTED = f"{PAIR} {MOVES} --network-ladder 300 400"
JUMP = f"{HYBRID} --checkpoint train_jump/best.pt --scheme jump"
TRANSFORMER = f"{HYBRID} --checkpoint train_transformer/best.pt --set inner=eager --scheme"
MM = f"src/06_hybrid_integrate.py --md-config configs/md_fast.yaml {RUN}"
MM_HYBRID = f"{MM} --molecule prep/ethanol --initial-md md/ethanol/trajectory.npz"
LEARN_FOR = "--learn --learn-config tiny/learn.yaml --model-config tiny/pair.yaml --set inner=numpy --scheme"
LEARN = f"{LEARN_FOR} metropolis --k-steps 20 --dt-fs 1"
QMMM = ("src/qmmm_example.py --qm-config configs/qm_fast.yaml --device cpu --out @/run.npz --replicas 2 --steps 6 "
        "--burn-in-steps 2")
EMBEDDED = f"{QMMM} --smiles CO --waters 2 --checkpoint qmmm_metropolis/run.npz.learn/network.pt"

CASES = {
    "prep": "src/00_prep_mols.py --smiles tiny/mols.smi --out-dir @",
    "prep_smiles": "src/00_prep_mols.py --smiles OO --name peroxide --force-field none --n-conformers 5 --out-dir @",
    "md": "src/01_run_md_baselines.py --molecule prep/ethanol --config configs/md_fast.yaml --out @",
    "md_cpu": "src/01_run_md_baselines.py --molecule prep/glycine --config configs/md_fast.yaml --out @ --replicas 1 "
              "--set platform=CPU --set drift_windows=1 --set drift_length_ps=0.2 --seed 3",
    "qm": f"{QM} --molecule ethanol --num-workers 2 --set drift_windows=2 --set drift_length_ps=0.05",
    "qm_gfn1": f"{QM} --molecule methanol --num-workers 1 --set method=GFN1-xTB --first-replica 2 {SHORT}",
    "qm_xtb": f"{QM} --molecule methanol --num-workers 1 --set backend=xtb {SHORT}",
    "qm_xtb_ff": f"{QM} --molecule methanol --num-workers 1 --set backend=xtb --set method=GFN-FF {SHORT}",
    "qm_ase": f"{QM} --config configs/qm_ase.yaml --molecule methanol --num-workers 1 {SHORT}",
    "qm_emt": f"{QM} --config configs/qm_ase.yaml --molecule water --num-workers 1 --set kwargs={{}} "
              f"--set calculator=ase.calculators.emt:EMT {SHORT}",
    "qm_hf": "src/01c_run_pyscf_baselines.py --smiles-file tiny/mols.smi --raw prep --molecule water --num-workers 1 "
             f"--config configs/qm_pyscf_fast.yaml --out @ {SHORT}",
    "qm_pbe": f"{QM} --config configs/qm_pyscf_fast.yaml --molecule water --num-workers 1 --replicas 1 {SHORT} "
              "--set hot_length_ps=0 --set functional=PBE --set grid_level=1 --set density_fit=true",

    "data_qm": "src/02_make_dataset.py --md-root qm --out-root @ --splits-dir @/splits --ks 4 8",
    "data_md": "src/02_make_dataset.py --md-root md --out-root @ --splits-dir @/splits --ks 4",
    "data_rotated": "src/02_make_dataset.py --md-root qm --out-root @ --splits-dir @/splits --ks 3 --stride 2 "
                    "--max-samples-per-mol 200 --augment-rotations 2 --seed 5",

    "train_pair": f"{TRAIN} --dataset data_qm/dataset_k8.npz --model-config tiny/pair.yaml "
                  "--train-config configs/train_pair_mlp.yaml --max-steps 400",
    "train_jump": f"{TRAIN} --dataset data_qm/dataset_k4.npz --model-config configs/model.yaml "
                  f"--train-config configs/train_fast.yaml --max-steps 40 {EGNN}",
    "train_both": f"{TRAIN} --dataset data_qm/dataset_k8.npz --model-config tiny/both.yaml "
                  "--train-config configs/train.yaml --max-steps 10 --set batch_size=16 --set lambda_struct_bond=0.1 "
                  "--set lambda_struct_angle=0.1 --set lambda_struct_dihedral=0.1 --set lambda_angular_momentum=0.1 "
                  "--set struct_warmup_ratio=0.5 --set uncertainty_weighting=true --set random_rotate_mode=per_graph "
                  "--set grad_accum=2 --set checkpoint_interval_steps=4 --seed 2",
    "train_transformer": f"{TRAIN} --dataset data_qm/dataset_k8.npz --model-config configs/model_transformer.yaml "
                         f"--train-config configs/train_fast.yaml --max-steps 250 {EGNN}",
    "train_dropout": f"{TRAIN} --dataset data_qm/dataset_k4.npz --model-config configs/model_transformer.yaml "
                     f"--train-config configs/train_fast.yaml --max-steps 6 {EGNN} --set dropout=0.1 "
                     "--set 'heads={energy: true, jump: true}'",
    "train_student": f"{TRAIN} --dataset data_qm/dataset_k8.npz --model-config tiny/pair.yaml --max-steps 60 "
                     "--train-config configs/train_pair_mlp.yaml --teacher train_transformer/best.pt "
                     "--set distill_frames=64 --set distill_temperature_K=100",
    "mm_train_pair": "src/04_train.py --splits data_md/splits/train.json data_md/splits/val.json --out-dir @ "
                     "--device cpu --dataset data_md/dataset_k4.npz --model-config tiny/pair.yaml "
                     "--train-config configs/train_pair_mlp.yaml --max-steps 400",
    "train_on": f"{TRAIN} --dataset data_qm/dataset_k8.npz --model-config tiny/pair.yaml --max-steps 30 "
                "--train-config configs/train_pair_mlp.yaml --pretrained mm_train_pair/best.pt --freeze-layers 1",
    "train_resumed": f"{TRAIN} --dataset data_qm/dataset_k4.npz --model-config tiny/both.yaml "
                     "--train-config configs/train.yaml --set batch_size=16 --max-steps 6\n"
                     f"{TRAIN} --dataset data_qm/dataset_k4.npz --model-config tiny/both.yaml "
                     "--train-config configs/train.yaml --set batch_size=16 --max-steps 12 --resume",
    "train_two": f"-m torch.distributed.run --standalone --nproc_per_node 2 {TRAIN} --dataset data_qm/dataset_k4.npz "
                 "--model-config tiny/both.yaml --train-config configs/train.yaml --set batch_size=16 --max-steps 6",

    "runs/plain": f"{HYBRID} --scheme plain --thermostat langevin --steps 60",
    "runs/plain_nve": f"{HYBRID} --scheme plain --thermostat none --steps 60 --dt-fs 1 --num-workers 2",
    "runs/impulse": f"{PAIR} impulse --k-steps 4 --dt-fs 0.5 --thermostat none",
    "runs/impulse_two": f"{PAIR} impulse --k-steps 4 --dt-fs 0.5 --thermostat langevin --num-workers 2",
    "runs/impulse_projected": f"{PAIR} impulse --k-steps 8 --dt-fs 0.5 --thermostat none --project-residual",
    "runs/impulse_transformer": f"{TRANSFORMER} impulse --k-steps 2 --dt-fs 0.5 --delta-scale 0.5",
    "runs/checked": f"{PAIR} checked --k-steps 4 --dt-fs 0.5 --thermostat langevin",
    "runs/checked_stops": f"{PAIR} checked --k-steps 8 --dt-fs 0.5 --thermostat none "
                          "--set max_force_rmse_kJ_per_mol_A=0.001",
    "runs/checked_learns": f"{PAIR} checked --k-steps 4 --dt-fs 0.5 --steps 30 --labels data_qm/dataset_k8.npz "
                           "--learn-config tiny/learn.yaml --set past_tolerance=learn "
                           "--set max_energy_spread_kJ_per_mol=0.5",
    "runs/jump": f"{JUMP} --thermostat none",
    "runs/jump_refused": f"{JUMP} --thermostat langevin --num-workers 2 --set max_energy_jump_kJ_per_mol=0.5 "
                         "--max-attempts 2 --set energy_rescale=true",
    "runs/metropolis": f"{METROPOLIS} --set length_law=fixed",
    "runs/metropolis_two": f"{METROPOLIS} --set length_law=fixed --num-workers 2",
    "runs/metropolis_heavy": f"{METROPOLIS} --set length_law=uniform --hydrogen-mass 4 --set store_forces=false",
    "runs/metropolis_hessian": f"{METROPOLIS} --set hessian_masses=true --set save_interval_steps=2",
    "runs/metropolis_tempered": f"{METROPOLIS} --tempering 300 400 --steps 30",
    "runs/metropolis_transformer": f"{TRANSFORMER} metropolis --k-steps 5 --dt-fs 0.5 --steps 8",
    "runs/metropolis_cut": f"until:@/run.npz.parts/checkpoint.npz {METROPOLIS} --set checkpoint_interval=4 --steps 60\n"
                           f"{METROPOLIS} --set checkpoint_interval=4 --steps 60 --resume",
    "runs/nested": NESTED,
    "runs/nested_two": f"{NESTED} --num-workers 2",
    "runs/nested_weighed": f"{NESTED} --set judge=weights --steps 30",
    "runs/nested_alone": f"{PAIR} {MOVES} --network-ladder 300 --hydrogen-mass 4 --set turns=0 "
                         "--set mirror_images=false --set keep_species=false",
    "runs/nested_cut": f"until:@/run.npz.parts/checkpoint.npz {NESTED} --set checkpoint_interval=4 --steps 60\n"
                       f"{NESTED} --set checkpoint_interval=4 --steps 60 --resume",
    "conformers": f"{SMILES} --molecule prep/glycine --scheme plain --steps 8 --replicas 6 --seed 4",
    "smiles_ase": f"{SMILES} --smiles CO --qm-config configs/qm_ase.yaml --scheme plain --steps 4 --replicas 2",
    "smiles_hf": f"{SMILES} --smiles O --qm-config configs/qm_pyscf_fast.yaml --scheme plain --steps 4 --replicas 2",

    "mm_runs/plain": f"{MM_HYBRID} --scheme plain --steps 100",
    "mm_runs/impulse": f"{MM_HYBRID} --scheme impulse --checkpoint mm_train_pair/best.pt --set inner=eager "
                       "--k-steps 4 --dt-fs 0.5",
    "mm_runs/metropolis": f"{MM_HYBRID} --scheme metropolis --checkpoint mm_train_pair/best.pt --set inner=numpy "
                          "--k-steps 10 --dt-fs 0.5 --steps 60",

    "learn_one": f"{SMILES} --smiles O {LEARN}",
    "learn_two": f"{SMILES} --smiles O {LEARN} --num-workers 2",
    "learn_nested": f"{SMILES} --smiles OO {LEARN_FOR} {MOVES} --network-ladder 300 400",
    "learn_ladder": f"{SMILES} --smiles OO {LEARN} --tempering 300 450 --hydrogen-mass 4",
    "learn_ase": f"{SMILES} --smiles O --qm-config configs/qm_ase.yaml {LEARN}",
    "learn_hf": f"{SMILES} --smiles O --qm-config configs/qm_pyscf_fast.yaml {LEARN} --steps 6",
    "learn_cut": f"until:@/run.npz.learn/chains.npz {MM} --smiles O {LEARN}\n{MM} --smiles O {LEARN} --resume",

    "qmmm_plain": f"{QMMM} --smiles CO --waters 2 --scheme plain --dt-fs 0.5 --thermostat langevin",
    "qmmm_link": f"{QMMM} --smiles CCCC --qm-atoms 0 1 4 5 6 7 8 --waters 0 --scheme plain --dt-fs 0.5",
    "qmmm_mechanical": f"{QMMM} --smiles CO --waters 2 --scheme plain --dt-fs 0.5 --embedding mechanical",
    "qmmm_pdb": f"{QMMM} --pdb data/alanine_dipeptide.pdb --qm-atoms 10 11 12 13 --scheme plain --dt-fs 0.5 --steps 3",
    "qmmm_metropolis": f"{QMMM} --smiles CO --waters 2 --scheme metropolis --k-steps 10 --learn-config tiny/learn.yaml "
                       "--learn-calls 100 --model-config tiny/pair.yaml",
    "qmmm_impulse": f"{EMBEDDED} --scheme impulse --k-steps 4 --dt-fs 0.5",
    "qmmm_checked": f"{EMBEDDED} --scheme checked --k-steps 4 --dt-fs 0.5 --thermostat langevin",

    "eval_qm": "src/05b_eval_qm.py --baseline qm --hybrid runs --out-dir @",
    "eval_md": "src/05_eval_drift_rdfs.py --baseline md --hybrid-runs mm_runs --out-dir @ --rdf-max 0.6 --rdf-bins 100",
}


def needs(name: str) -> list[str]:
    """The earlier cases whose files a case reads."""
    words = {word for word in shlex.split(CASES[name]) if not word.startswith("@")}
    earlier = list(CASES)[:list(CASES).index(name)]
    return [case for case in earlier
            if any(word == case or word.startswith(f"{case}/") or case.startswith(f"{word}/") for word in words)]


def run_command(line: str, name: str, tree: Path, out: Path, log) -> None:
    """One command line of a case; RuntimeError if it fails."""
    roots = {"src/": tree, "configs/": tree, "data/": tree, "tiny/": out}
    words = [word.replace("@", name, 1) if word.startswith(("@", "until:@")) else word for word in shlex.split(line)]
    words = [str(next((root / word for top, root in roots.items() if word.startswith(top)), word)) for word in words]
    until = out / "work" / words.pop(0).removeprefix("until:") if words[0].startswith("until:") else None
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
                   "OPENBLAS_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    print("$", shlex.join(words), file=log, flush=True)
    process = subprocess.Popen([sys.executable, *words], cwd=out / "work", env=environment, stdout=log, stderr=log)
    while until and process.poll() is None and not until.exists():
        time.sleep(0.005)
    if until and process.poll() is None:
        process.kill()
    code = process.wait()
    if code != (-9 if until else 0):
        raise RuntimeError(f"exit code {code}{', not cut' if until else ''}; see {log.name}")


def run_case(name: str, tree: Path, out: Path, started: dict[str, Future]) -> float:
    """Wait for what the case needs, then run it; its seconds."""
    for case in needs(name):
        if started[case].exception():
            raise RuntimeError(f"needs {case}")
    start = time.perf_counter()
    path = out / "logs" / f"{name}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as log:
        for line in CASES[name].splitlines():
            run_command(line, name, tree, out, log)
    return time.perf_counter() - start


def record(out: Path, tree: Path) -> int:
    """Run every case; OUT/cases.json holds the seconds of those that succeeded."""
    out, tree, start = out.resolve(), tree.resolve(), time.perf_counter()
    if (out / "work").exists():
        print(f"error: {out} holds a recording; choose another folder or delete it", file=sys.stderr)
        return 2
    (out / "work").mkdir(parents=True)
    (out / "tiny").mkdir()
    for name, text in TINY.items():
        (out / "tiny" / name).write_text(text)
    started: dict[str, Future] = {}
    seconds = {}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for name in CASES:
            started[name] = pool.submit(run_case, name, tree, out, started)
        for name, case in started.items():
            if not case.exception():
                seconds[name] = round(case.result(), 1)
            print(f"{name:28s} {case.exception() or f'{seconds[name]} s'}", flush=True)
    (out / "cases.json").write_text(json.dumps(seconds, indent=1))
    print(f"{len(seconds)} of {len(CASES)} cases in {time.perf_counter() - start:.0f} s -> {out}")
    return 0 if len(seconds) == len(CASES) else 1


def leaves(value, path: str = "") -> Iterator[tuple[str, object]]:
    """Whatever is neither a mapping nor a list in `value`, with the path to it; nothing that is a clock's."""
    if isinstance(value, (dict, list, tuple)):
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            if not CLOCK.search(str(key)):
                yield from leaves(entry, f"{path}/{key}")
    else:
        yield path, value


def read(path: Path) -> dict[str, object]:
    """What counts of a file: arrays (ndarray), numbers, and status and scheme of an npz."""
    if path.suffix == ".npz":
        with np.load(path) as archive:
            arrays = {key: archive[key] for key in archive.files}
        found = {key: array for key, array in arrays.items() if array.dtype.kind != "U"}
        for key in set(arrays) - set(found):
            facts = {name: (name.split("/"), value) for name, value in leaves(json.loads(str(arrays[key])), key)}
            found |= {name: value for name, (keys, value) in facts.items()
                      if PHYSICS & set(keys) and (keys[-1] in PHYSICS or not isinstance(value, str))}
        return found
    if path.suffix == ".pt":
        import torch

        content = torch.load(path, map_location="cpu", weights_only=True)
    else:
        content = json.loads(path.read_text())
    return {name: value.numpy() if hasattr(value, "numpy") else value for name, value in leaves(content)
            if not isinstance(value, str)}


def difference(a, b) -> str | None:
    """How two entries differ, None if they are the same."""
    if not isinstance(a, np.ndarray) or not isinstance(b, np.ndarray):
        return None if repr(a) == repr(b) or np.array_equal(a, b) else f"{a} and {b}"
    if a.dtype != b.dtype or a.shape != b.shape:
        return f"{a.dtype}{a.shape} and {b.dtype}{b.shape}"
    if a.tobytes() == b.tobytes():
        return None
    with np.errstate(all="ignore"):
        return f"by up to {np.nanmax(np.abs(a.astype(float) - b.astype(float)), initial=0.0):.3g}"


def compare_files(a: Path, b: Path) -> tuple[list[str], list[str]]:
    """(differences, remarks); a number that only one side has is a remark, an array a difference."""
    ours, theirs = read(a), read(b)
    found = {key: difference(ours[key], theirs[key]) for key in sorted(set(ours) & set(theirs))}
    lines, remarks = [f"{key} differs: {words}" for key, words in found.items() if words], []
    for side, here, there in (("A", ours, theirs), ("B", theirs, ours)):
        alone = sorted(set(here) - set(there))
        lines += [f"array {key} is in {side} alone" for key in alone if isinstance(here[key], np.ndarray)]
        numbers = [key for key in alone if not isinstance(here[key], np.ndarray)]
        remarks += [f"only in {side}: {', '.join(numbers)}"] if numbers else []
    more = [f"and {len(lines) - MOST_LISTED} more"] if len(lines) > MOST_LISTED else []
    return lines[:MOST_LISTED] + more, remarks


def compare_case(a: Path, b: Path) -> tuple[list[str], list[str]]:
    """(differences, remarks) of all files of a case."""
    ours, theirs = ({path.relative_to(folder) for path in folder.rglob("*") if path.suffix in (".npz", ".pt", ".json")}
                    for folder in (a, b))
    differences = [f"{path} is in {'A' if path in ours else 'B'} alone" for path in sorted(ours ^ theirs)]
    remarks = []
    for path in sorted(ours & theirs):
        found = compare_files(a / path, b / path)
        differences += [f"{path}: {line}" for line in found[0]]
        remarks += [f"{path}: {line}" for line in found[1]]
    return differences, remarks


def compare(a: Path, b: Path) -> int:
    """Print every case; 1 if anything differs."""
    for out in (a, b):
        if not (out / "cases.json").is_file():
            print(f"error: {out} holds no whole recording", file=sys.stderr)
            return 2
    ours, theirs = (json.loads((out / "cases.json").read_text()) for out in (a, b))
    wrong = 0
    for name in dict.fromkeys([*ours, *theirs]):
        differences, remarks = compare_case(a / "work" / name, b / "work" / name)
        if (name in ours) != (name in theirs):
            differences = [f"recorded in {'A' if name in ours else 'B'} alone"]
        wrong += bool(differences)
        print(f"{name:28s} {'differs' if differences else 'same'}")
        for line in differences + remarks:
            print(f"    {line}")
    print(f"{wrong} of {len(dict.fromkeys([*ours, *theirs]))} cases differ" if wrong else "all the same")
    return 1 if wrong else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="run every case")
    recording.add_argument("out", type=Path, help="a new folder")
    recording.add_argument("--tree", type=Path, default=Path(__file__).resolve().parents[1],
                           help="the repository whose scripts are run (default: that of this script)")
    comparing = commands.add_parser("compare", help="hold two recordings against each other")
    comparing.add_argument("a", type=Path)
    comparing.add_argument("b", type=Path)
    args = parser.parse_args()
    return record(args.out, args.tree) if args.command == "record" else compare(args.a, args.b)


if __name__ == "__main__":
    sys.exit(main())
