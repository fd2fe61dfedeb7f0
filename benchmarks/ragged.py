"""Dense pairs on a padded grid against a list of the pairs within the cutoff, and torch_geometric's collation: CPU ms.

Molecules of 10 to 100 atoms, alone, as replicas, and mixed in one batch of training.  Both ways to hold the pairs are
the network's own (kstep/models/dense.py, radius_graph.py), on one thread, in turns within one process; a figure is the
least CPU time of several turns.  Training is that of configs/model.yaml, with pairs within 0.4 nm.  Writes
benchmarks/results/ragged.json, on which `dense.CELLS_PER_PAIR` rests.

    python benchmarks/ragged.py
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

import numpy as np
import torch
from rdkit import Chem
from rdkit.Chem import AllChem

from guides import put
from kstep.config import load_config
from kstep.files import rounded, write_json_compact
from kstep.models import build_model
from kstep.models.dense import CELLS_PER_PAIR, Grid
from kstep.models.model_config import ModelConfig
from kstep.training import normalisation
from kstep.training.batches import Windows
from kstep.training.objective import Objective
from kstep.training.step_plan import Piece
from kstep.training.train_config import TrainConfig
from kstep.units import NM_PER_ANGSTROM, kT
from running import RESULTS, ROOT, machine, provenance

RESULT, GUIDE, MARK = RESULTS / "ragged.json", ROOT / "MODELS.md", "<!-- ragged -->"
MOLECULES = {  # atoms: name, SMILES
    10: ("acetone", "CC(C)=O"), 21: ("aspirin", "CC(=O)Oc1ccccc1C(=O)O"),
    33: ("ibuprofen", "CC(C)Cc1ccc(cc1)C(C)C(=O)O"),
    40: ("celecoxib", "Cc1ccc(cc1)-c1cc(nn1-c1ccc(cc1)S(N)(=O)=O)C(F)(F)F"),
    100: ("nona-alanyl-glycine", "N" + "[C@@H](C)C(=O)N" * 9 + "CC(=O)O")}
MODEL = "configs/model.yaml"
INFERENCE = [(cutoff, n, replicas) for cutoff in (0.4, 0.5) for n in MOLECULES for replicas in (1, 16)]  # nm first
TRAINING = [(10,), (21,), (33,), (40,), (100,), (10, 21), (10, 40), (10, 40, 100)]  # sizes in a batch
HEADS = {"energy": {"energy": True, "jump": False}, "jump": {"energy": False, "jump": True}}
BATCH, K_STEPS, DT_FS = 24, 8, 0.5


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=7, help="measurements of each call, of which the least counts")
    parser.add_argument("--least-s", type=float, default=0.1, help="CPU seconds of one measurement")
    parser.add_argument("--out", type=Path, default=RESULT)
    return parser.parse_args()


def molecule(n_atoms: int) -> dict:
    """A conformer at rest in MMFF94: numbers (N,), masses (N,) Da, bonds (B,2), x (N,3) nm."""
    found = Chem.AddHs(Chem.MolFromSmiles(MOLECULES[n_atoms][1]))
    AllChem.EmbedMolecule(found, randomSeed=1)
    AllChem.MMFFOptimizeMolecule(found, maxIters=5000)
    assert found.GetNumAtoms() == n_atoms, (n_atoms, found.GetNumAtoms())
    return {"numbers": np.array([atom.GetAtomicNum() for atom in found.GetAtoms()]),
            "masses": np.array([atom.GetMass() for atom in found.GetAtoms()]),
            "bonds": np.array([(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in found.GetBonds()]),
            "x": found.GetConformer().GetPositions() * NM_PER_ANGSTROM}


def windows_of(sizes: tuple[int, ...], n_windows: int) -> Windows:
    """So many windows, the molecules in turn, shaken by 0.005 nm; velocities are thermal, forces random."""
    rng, own = np.random.default_rng(0), [molecule(n) for n in sizes]
    which = np.arange(n_windows) % len(own)
    n_atoms = np.array([len(own[m]["x"]) for m in which])
    mass = np.concatenate([own[m]["masses"] for m in which])[:, None]

    def noise(size):
        return size * rng.normal(size=(len(mass), 3))

    start = np.concatenate([own[m]["x"] for m in which]) + noise(0.005)
    v, f, tau = noise((kT(300.0) / mass) ** 0.5), noise(1000.0), K_STEPS * DT_FS * 1e-3
    return Windows({
        "x_t": start, "v_t": v, "f_t": f, "x_tk": start + v * tau + noise(0.001), "f_tk": noise(1000.0),
        "v_half": v + noise(0.1), "epot_t": rng.normal(size=n_windows), "epot_tk": rng.normal(size=n_windows),
        "temperature_K": np.full(n_windows, 300.0), "dt_fs": DT_FS, "k_steps": np.full(n_windows, K_STEPS),
        "molecule_id": which, "ptr": np.concatenate([[0], np.cumsum(n_atoms)]),
        "mol_ptr": np.cumsum([0] + [len(m["x"]) for m in own]),
        "atom_types": np.concatenate([m["numbers"] for m in own]),
        "masses": np.concatenate([m["masses"] for m in own]), "bonds": np.concatenate([m["bonds"] for m in own]),
        "bond_ptr": np.cumsum([0] + [len(m["bonds"]) for m in own])}, {})


def network(head: str, **keys):
    torch.manual_seed(0)
    return build_model(load_config(ModelConfig, ROOT / MODEL, {"heads": HEADS[head], **keys}))


def least_ms(calls: dict, turns: int, least_s: float) -> dict[str, float]:
    """CPU ms of each call: in turns, each repeated for least_s, the least of all turns."""
    best = dict.fromkeys(calls, float("inf"))
    for call in calls.values():
        call()
    for _ in range(turns):
        for name, call in calls.items():
            n, began = 0, time.process_time()
            while not n or time.process_time() - began < least_s:
                call()
                n += 1
            best[name] = min(best[name], 1e3 * (time.process_time() - began) / n)
    return best


def compared(batch, cutoff: float, calls: dict, args) -> dict:
    """The row of a pair of calls, beside how full the grid of their batch is."""
    near = Grid(batch).near(batch.positions, cutoff)
    ms = least_ms(calls, args.turns, args.least_s)
    return {"neighbours": float(near.sum() / len(batch.numbers)), "cells_per_pair": float(near.numel() / near.sum()),
            "dense_ms": ms["dense"], "sparse_ms": ms["sparse"], "times_faster": ms["dense"] / ms["sparse"]}


def inference(cutoff_nm: float, n_atoms: int, replicas: int, args) -> dict:
    """One call of energy and forces, float32."""
    model = network("energy", cutoff_nm=cutoff_nm).eval().requires_grad_(False)
    batch, _ = windows_of((n_atoms,), replicas).batch(torch.arange(replicas), structure=False)

    def call(sparse):
        own = model.layout(batch, sparse)

        def evaluate():
            batch.layout = own
            model.energy_and_forces(batch)

        return evaluate

    return compared(batch, model.config.cutoff_nm, {"dense": call(False), "sparse": call(True)}, args)


def training(head: str, sizes: tuple[int, ...], args) -> dict:
    """Loss and gradient of one batch with its collation; the optimiser's step costs the same on both sides."""
    model, data, chosen = network(head), windows_of(sizes, BATCH), torch.arange(BATCH)
    normalisation.fit(model, data, chosen)
    objective = Objective(model, data, TrainConfig(), normalisation.scales(data, chosen))
    layout = type(model).layout

    def call(sparse):
        def step():
            model.layout = lambda batch: layout(model, batch, sparse)
            objective(Piece(chosen), 0.5)[0].backward()

        return step

    batch, _ = data.batch(chosen, structure=False)
    return compared(batch, model.config.cutoff_nm, {"dense": call(False), "sparse": call(True)}, args)


def collation(sizes: tuple[int, ...], args) -> dict:
    """Making the tensors of a batch: `Windows.batch` against torch_geometric's Batch of as many Data objects."""
    from torch_geometric.data import Batch, Data

    data, parts = windows_of(sizes, BATCH), []
    for window in range(BATCH):
        one, targets = data.batch(torch.tensor([window]))
        parts.append(Data(numbers=one.numbers, masses=one.masses, pos=one.positions, velocities=one.velocities,
                          forces=one.forces, x_k=targets.x_k, v_half=targets.v_half, energy=targets.energy,
                          tau_ps=one.tau_ps, bond_index=one.bonds.t(), angle_index=targets.angles.t(),
                          torsion_index=targets.torsions.t(), num_nodes=len(one.numbers)))
    return least_ms({"ours_ms": lambda: data.batch(torch.arange(BATCH)),
                     "torch_geometric_ms": lambda: Batch.from_data_list(parts)}, args.turns, args.least_s)


def loading_s() -> dict:
    """CPU seconds that a process spends on loading torch_geometric after torch: the least of three."""
    code = ("import time, torch; began = time.process_time(); import torch_geometric.utils; "
            "print(time.process_time() - began)")
    return {"torch_geometric_s": min(float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(3))}


def name_of(sizes) -> str:
    return "+".join(map(str, sizes)) + " atoms"


def table(found: dict) -> str:
    """How many times faster listed pairs are than a grid, for MODELS.md."""
    rows = []
    for sizes in TRAINING:
        one = [found["inference"].get(f"{sizes[0]} atoms within 0.4 nm, replicas: {r}") if len(sizes) == 1 else None
               for r in (1, 16)]
        training = [found["training"][f"{head}, {name_of(sizes)}"] for head in HEADS]
        rows.append([name_of(sizes), f"{training[0]['cells_per_pair']:.1f}",
                     *(f"{row['times_faster']:.2f}" if row else "-" for row in [*one, *training])])
    head = ["in a batch", "cells of the grid per pair", "energy and forces, 1 replica", "16 replicas",
            "training step, energy", "training step, jump"]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def main():
    args = parse()
    torch.set_num_threads(1)
    made_by = provenance()
    made_by["versions"]["torch_geometric"] = version("torch_geometric")
    result = {"machine": machine(), **made_by, "clock": "CPU ms of one thread", "turns": args.turns,
              "network": "egnn", "config": MODEL, "listed_above_cells_per_pair": CELLS_PER_PAIR,
              "windows_in_a_batch": BATCH, "loading": loading_s(),
              "molecules": {f"{n} atoms": name for n, (name, _) in MOLECULES.items()},
              "collation": {}, "inference": {}, "training": {}}

    def keep(table, key, row):
        result[table][key] = row
        print(f"{table:10s} {key:38s}", {name: f"{value:.4g}" for name, value in row.items()}, flush=True)

    for sizes in ((10,), (10, 40, 100)):
        keep("collation", name_of(sizes), collation(sizes, args))
    for cutoff_nm, n_atoms, replicas in INFERENCE:
        keep("inference", f"{n_atoms} atoms within {cutoff_nm} nm, replicas: {replicas}",
             inference(cutoff_nm, n_atoms, replicas, args))
    for head in HEADS:
        for sizes in TRAINING:
            keep("training", f"{head}, {name_of(sizes)}", training(head, sizes, args))
    write_json_compact(args.out, result)
    if args.out == RESULT:
        put(GUIDE, MARK, table(rounded(result)))
    print(f"-> {args.out}")


if __name__ == "__main__":
    main()
