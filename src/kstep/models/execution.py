"""The ways to compute a network's energy and forces in the inner loop, and the measured choice of one.

    numpy      pair_mlp by hand (pair_mlp_numpy.py), on the CPU
    eager      PyTorch, operation by operation
    sparse     the same on the pairs within the cutoff alone (radius_graph.py), for large molecules
    compiled   torch.compile (inductor): faster code for a minute or two of compiling
    graphs     the launches of one call recorded as a CUDA graph and replayed

All compute in float32 or better (no TF32, no autocast), yet differ in the last bits, so a run uses
one way from its first step to its last, and its restart file says which.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from kstep.errors import UserError
from kstep.models import network_class
from kstep.models.batch import replicate
from kstep.models.pair_mlp_numpy import FastPairMLP

log = logging.getLogger("kstep")

TRIAL_S = 0.3  # for timing one way
COMPILE_S = 60.0  # what compiling is expected to cost; a run shorter than a few of it cannot win it back
WORTH_COMPILING_S = 3 * COMPILE_S
WORTH_LISTING = 25  # atoms; below, most pairs are within the cutoff (benchmarks/ragged.py)
CLEARLY_FASTER = 0.8  # of the time of the first way: noise must not decide between two equals


def full_precision() -> None:
    """Matrix products in float32: TF32, or bfloat16 on a CPU, would cost the last half of the digits."""
    torch.set_float32_matmul_precision("highest")


class Numpy:
    """pair_mlp's hot path; native arrays are numpy with the replica last, (3,N,R), as its memory wants it."""

    device = "cpu"

    def __init__(self, model, static, device: str = "cpu", rows: int | None = None):
        if "numpy" not in model.ways:
            raise UserError("inner: numpy is written for pair_mlp alone; use inner: auto or eager for this network")
        full_precision()
        self._fast = FastPairMLP(model)

    def native(self, array: np.ndarray):
        """(R,N,3) float64 as (3,N,R)."""
        return np.ascontiguousarray(array.T)

    def numpy(self, native) -> np.ndarray:
        """And back; energies (R,) as they are."""
        return np.ascontiguousarray(native.T)

    def __call__(self, x):
        return self._fast.replica_last(x)

    def forces(self, x):
        """Forces alone."""
        return self._fast.replica_last(x, with_energy=False)[1]


class Eager:
    """The model as PyTorch runs it; native arrays are tensors on `device`."""

    sparse = False

    def __init__(self, model, static, device: str = "cpu", rows: int | None = None):
        full_precision()
        self.model, self.device, self.rows, self._static = model, device, rows, static
        self._calls: dict[int, Callable] = {}

    def native(self, array: np.ndarray):
        """(R,N,3) float64 as a tensor on the device."""
        return torch.as_tensor(array, device=self.device)

    def numpy(self, native) -> np.ndarray:
        """And back."""
        return np.asarray(native.cpu(), dtype=np.float64)

    def forces(self, x):
        """Forces alone."""
        return self(x)[1]

    def __call__(self, x):
        if len(x) not in self._calls:
            self._calls[len(x)] = self._build(x)
        return self._calls[len(x)](x)

    def _build(self, x):
        """A function of positions (R,N,3) alone, R fixed: energy (R,) and forces (R,N,3)."""
        numbers, masses, bonds = self._static
        batch = replicate(numbers, masses, bonds, len(x), device=self.device)
        batch.layout = self.model.layout(batch, self.sparse)

        def call(x):
            energy, forces = self.model.energy_and_forces(replace(batch, positions=x.reshape(-1, 3)))
            return energy.detach(), forces.detach().reshape(x.shape)

        return call


class Sparse(Eager):
    """The same, without the pairs that lie beyond the cutoff, which are found anew in every call."""

    sparse = True


class Compiled(Eager):
    """The same, energy and gradient traced into one graph that inductor compiles for batches of `rows`.

    Compiled once: other numbers of replicas are computed in pieces of `rows`, the last one filled up.
    """

    def __call__(self, x):
        rows = self.rows or len(x)
        pieces = [super(Compiled, self).__call__(torch.cat([piece, piece[:1].expand(rows - len(piece), -1, -1)]))
                  for piece in x.split(rows)]
        return tuple(torch.cat(parts)[:len(x)] for parts in zip(*pieces))

    def _build(self, x):
        from torch.fx.experimental.proxy_tensor import make_fx

        # Traced through autograd first: what is compiled has no backward pass left in it.
        compiled = torch.compile(make_fx(super()._build(x))(x), dynamic=False, fullgraph=True)

        def call(x):
            with torch.no_grad():
                return compiled(x)

        call(x)
        return call


class Graphs(Eager):
    """The same, launches recorded once (torch.cuda.graph) and replayed on fixed memory."""

    def __init__(self, model, static, device: str = "cuda", rows: int | None = None):
        if device != "cuda":
            raise UserError("inner: graphs needs a CUDA GPU; use inner: auto")
        super().__init__(model, static, device, rows)

    def _build(self, x):
        eager, held = super()._build(x), x.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # warm-up: lazy initialisation must not be recorded
            for _ in range(3):
                eager(held)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            energy, forces = eager(held)

        def call(x):
            held.copy_(x)
            graph.replay()
            return energy.clone(), forces.clone()

        return call


BUILDERS: dict[str, type] = {"numpy": Numpy, "eager": Eager, "sparse": Sparse, "compiled": Compiled, "graphs": Graphs}


def possible_ways(arch: str, device: str) -> list[str]:
    """The ways worth timing for a network on a device, the ones that cost nothing to try first."""
    compiler = device == "cuda" or any(shutil.which(name) for name in ("g++", "clang++", "c++"))
    missing = {"graphs": device != "cuda", "compiled": not compiler}
    return [way for way in network_class(arch).ways if not missing.get(way)]


@dataclass
class Choice:
    """The way a run takes, microseconds per replica-step of each way timed, and why others were not."""

    way: str
    us: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def __str__(self):
        timed = ", ".join(f"{way} {us:.3g}" for way, us in sorted(self.us.items(), key=lambda item: item[1]))
        others = "".join(f"; {way} {why}" for way, why in self.left_out.items())
        return f"inner steps by {self.way} (us per replica-step: {timed}{others})"


def choose(load: Callable, positions: np.ndarray, ways: list[str], n_shards: int = 1,
           n_steps: float = float("inf")) -> tuple[Choice, object]:
    """Time each way for a moment; the fastest, or the first where none is clearly faster, and its Network.

    load(way): such a Network; positions (R,N,3) nm: what one process computes at once; n_shards:
    processes on the CPU that do so side by side, where a GPU has all their replicas in one batch;
    n_steps: inner steps the run will make, against which compiling is weighed: it is tried only
    where the run would otherwise take WORTH_COMPILING_S.
    """
    seconds, left_out, networks = {}, {}, {}
    for way in ways:
        best = min(seconds.values(), default=float("inf"))
        if way == "compiled" and n_steps * best < WORTH_COMPILING_S:
            left_out[way] = f"not tried: its {n_steps:.2g} steps take {n_steps * best:.2g} s without"
            continue
        if way == "sparse" and positions.shape[1] < WORTH_LISTING:
            left_out[way] = f"not tried: a molecule of {positions.shape[1]} atoms is within the cutoff"
            continue
        try:
            networks[way] = network = load(way)
            at_once = positions if network.device == "cpu" else np.repeat(positions, n_shards, 0)
            seconds[way] = time_forces(network, at_once)
        except UserError:
            raise
        except Exception as error:  # a compiler or a driver fails in its own way; the other ways remain
            left_out[way] = f"failed: {type(error).__name__}"
            log.debug("inner: %s failed", way, exc_info=True)
    if not seconds:
        raise UserError("no way to compute this network's forces works here: "
                        + ", ".join(f"{way} {why}" for way, why in left_out.items()))
    first, way = next(iter(seconds)), min(seconds, key=seconds.get)
    if seconds[way] > CLEARLY_FASTER * seconds[first]:
        way = first
    us = {each: 1e6 * s / (n_shards * len(positions)) for each, s in seconds.items()}
    return Choice(way, us, left_out), networks[way]


def time_forces(network, positions: np.ndarray, seconds: float = TRIAL_S) -> float:
    """Seconds of one call of `network.forces`: the best of many, which other jobs disturb least."""
    x, best, n = network.native(positions), float("inf"), 0
    network.forces(x)  # allocation, compiling, recording
    end = time.perf_counter() + seconds
    while n < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        network.forces(x)
        if network.device == "cuda":
            torch.cuda.synchronize()
        best, n = min(best, time.perf_counter() - start), n + 1
    return best
