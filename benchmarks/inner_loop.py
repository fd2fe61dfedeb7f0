"""The inner loop of pair_mlp: microseconds of one step of one replica, beside the limits of its arithmetic.

A step is what a run does: velocity Verlet and one force of the network of configs/model_pair_mlp.yaml, with random
weights, for molecules of 10 to 60 atoms.  On a CPU, one thread, as `inner: numpy` computes it, for what a process may
carry; on a GPU thousands of replicas, as `inner: graphs` does.  The limits: the operations of the matrix products over
the highest rate that a product of square matrices reaches here, and the bytes that the passes between them read and
write over the rate of a multiplication of arrays that stay in the cache.  A figure is the least of many short
measurements.  Writes benchmarks/results/inner_loop.json (inner_loop_cuda.json).

    python benchmarks/inner_loop.py
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

import numpy as np
import torch

from kstep.config import load_config
from kstep.files import write_json_compact
from kstep.models import build_model
from kstep.models.model_config import ModelConfig
from kstep.models.network import Network
from kstep.schemes.velocity_verlet import velocity_verlet
from kstep.units import PS_PER_FS
from running import RESULTS, ROOT, machine, provenance

RESULT = {"cpu": RESULTS / "inner_loop.json", "cuda": RESULTS / "inner_loop_cuda.json"}
CONFIG = "configs/model_pair_mlp.yaml"
ATOMS = (10, 20, 33, 41, 60)
ROWS = {"cpu": (8, 16, 32, 64, 128, 256), "cuda": (1024, 4096, 16384)}
WAY = {"cpu": "numpy", "cuda": "graphs"}
MASS_DA, DT_FS = 12.0, 0.01  # a network of random weights must not tear its molecule apart while it is timed
SQUARE = {"cpu": (256, 512, 1024), "cuda": (4096, 8192)}  # sizes of the products whose rate is the highest
STREAM_FLOATS = {"cpu": 1 << 15, "cuda": 1 << 26}  # three arrays of them: in a core's cache, or beyond the GPU's


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=sorted(WAY), default="cpu")
    parser.add_argument("--atoms", type=int, nargs="+", default=ATOMS)
    parser.add_argument("--rows", type=int, nargs="+", help="replicas computed at once (default: those of the device)")
    parser.add_argument("--least-s", type=float, default=2.0, help="seconds of each figure")
    parser.add_argument("--steps", type=int, default=5, help="timesteps of one measurement: few, and it is short")
    parser.add_argument("--out", type=Path, help="default: results/inner_loop.json, or inner_loop_cuda.json")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA GPU here; leave the flag out to measure on the CPU")
    return args


def chain(n_atoms: int, n_rows: int) -> np.ndarray:
    """Positions (n_rows,N,3) nm of a zigzag of carbons, each shaken by 0.005 nm."""
    atoms = np.arange(n_atoms)
    zigzag = np.stack([0.127 * atoms, 0.08 * (atoms % 2), np.zeros(n_atoms)], axis=1)
    return zigzag + np.random.default_rng(0).normal(scale=0.005, size=(n_rows, n_atoms, 3))


def network(n_atoms: int, device: str, config: ModelConfig | None = None, inner: str | None = None,
            rows: int | None = None) -> Network:
    """A network of such a chain, with random weights: that of CONFIG by the device's way, where nothing else is said.

    rows: replicas that it is compiled for.
    """
    torch.manual_seed(0)
    atoms, x = np.arange(n_atoms), chain(n_atoms, 500)
    numbers, bonds = np.full(n_atoms, 6), np.stack([atoms[:-1], atoms[1:]], axis=1)
    model = build_model(config or load_config(ModelConfig, ROOT / CONFIG), {"numbers": numbers, "bonds": bonds})
    if model.bound_to_one_molecule:  # its scales are those of a molecule; the others are built with some
        model.fit_normalisation({"positions": x, "energies": np.random.default_rng(1).normal(scale=10.0, size=len(x))})
    return Network(model, numbers, np.full(n_atoms, MASS_DA), bonds, metadata={"spans": [1]}, device=device,
                   inner=inner or WAY[device], rows=rows)


def least_s(call: Callable, seconds: float, device: str = "cpu") -> float:
    """Seconds of one call, the least of as many as fit into `seconds`: CPU time of this thread, wall time on a GPU."""
    clock = time.process_time if device == "cpu" else time.perf_counter

    def timed():
        began = clock()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        return clock() - began

    timed()
    best, end = timed(), time.perf_counter() + seconds
    while time.perf_counter() < end:
        best = min(best, timed())
    return best


def rates(device: str, seconds: float) -> dict:
    """The highest rates in single precision: operations of a matrix product, bytes of a multiplication a * b -> c."""
    torch.set_float32_matmul_precision("highest")  # as the network computes

    def product(n):
        a, c = torch.rand(n, n, device=device), torch.empty(n, n, device=device)
        return 2 * n**3 / least_s(lambda: torch.mm(a, a, out=c), seconds, device)

    a, b, c = (torch.rand(STREAM_FLOATS[device], device=device) for _ in range(3))
    stream = 3 * a.nbytes / least_s(lambda: torch.mul(a, b, out=c), seconds, device)
    return {"product_GFLOP_per_s": max(map(product, SQUARE[device])) / 1e9, "stream_GB_per_s": stream / 1e9}


def operations(n_atoms: int, widths: list[int]) -> int:
    """Of the matrix products of one replica's energy gradient: forwards through all layers, and back."""
    sizes = [n_atoms * (n_atoms - 1) // 2, *widths]
    return 2 * sum(2 * a * b for a, b in pairwise(sizes))


def passes_bytes(n_atoms: int, widths: list[int]) -> int:
    """That the passes between the products read and write, as pair_mlp_numpy makes them, for one replica.

    In numbers of single precision per pair: distance vectors 9, their squares 8, inverse root 2, features 2, pull 2,
    the network's share of it 3, times 1/r^3 9, times the vectors 9, sums over atoms 3 and 4.5 (half of it zeros between
    the offsets); per hidden neuron: silu 2, its derivative times what comes back 3.
    """
    pairs = n_atoms * (n_atoms - 1) // 2
    return 4 * round(51.5 * pairs + 5 * sum(widths))


def step_s(net: Network, n_atoms: int, n_rows: int, seconds: float, steps: int) -> float:
    """Seconds of one step of one replica: the least of measurements of `steps` steps each, for `seconds`."""
    x = net.native(chain(n_atoms, n_rows))
    inverse_masses = net.native(np.full((1, n_atoms, 3), 1.0 / MASS_DA))

    def run():
        velocity_verlet(net.forces, x, 0.0 * x, inverse_masses, DT_FS * PS_PER_FS, steps)

    return least_s(run, seconds, net.device) / (n_rows * (steps + 1))  # as many forces as steps, and one


def sizes(n_atoms: int, rows, limits: dict, args) -> dict:
    """The row of one molecule: us of a step by rows, and of its limits."""
    net = network(n_atoms, args.device)
    widths = net.model.config.pair_hidden
    products_us = operations(n_atoms, widths) / limits["product_GFLOP_per_s"] / 1e3
    passes_us = passes_bytes(n_atoms, widths) / limits["stream_GB_per_s"] / 1e3
    return {"pairs": n_atoms * (n_atoms - 1) // 2, "limit_products_us": products_us, "limit_passes_us": passes_us,
            "step_us": {str(n): 1e6 * step_s(net, n_atoms, n, args.least_s, args.steps) for n in rows}}


def main():
    args = parse()
    torch.set_num_threads(1)
    limits = rates(args.device, args.least_s)
    print(f"{limits['product_GFLOP_per_s']:.4g} GFLOP/s, {limits['stream_GB_per_s']:.4g} GB/s", flush=True)
    result = {"machine": machine(), **provenance(), "config": CONFIG, "inner": WAY[args.device], **limits, "atoms": {}}
    if args.device == "cuda":
        result["gpu"] = torch.cuda.get_device_name()
    for n_atoms in args.atoms:
        row = sizes(n_atoms, args.rows or ROWS[args.device], limits, args)
        result["atoms"][str(n_atoms)] = row
        print(f"{n_atoms} atoms: products {row['limit_products_us']:.3g}, passes {row['limit_passes_us']:.3g}, "
              "step by rows " + ", ".join(f"{n}: {us:.3g}" for n, us in row["step_us"].items()), flush=True)
    out = args.out or RESULT[args.device]
    write_json_compact(out, result)
    print(f"-> {out}")


if __name__ == "__main__":
    main()
