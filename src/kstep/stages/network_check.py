"""A network of a config looked at before it is trained: sizes, symmetries, the time of a force and of a jump."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import numpy as np
import torch

from kstep.errors import UserError
from kstep.models import build_model, execution as inner
from kstep.models.batch import replicate
from kstep.models.model_config import ModelConfig
from kstep.models.network import Network
from kstep.models.symmetry import shake, symmetry_errors
from kstep.units import NM_PER_ANGSTROM, kT

TOLERANCE = 1e-8
MOLECULES = {"ethanol": "CCO", "aspirin": "CC(=O)Oc1ccccc1C(=O)O"}


def example(smiles: str, n_replicas: int, generator: torch.Generator):
    """A batch of shaken copies of a molecule with thermal velocities, random forces and tau = 4 fs."""
    from rdkit import Chem
    from rdkit.Chem import AllChem

    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    AllChem.EmbedMolecule(molecule, randomSeed=1)
    numbers = np.array([atom.GetAtomicNum() for atom in molecule.GetAtoms()])
    masses = np.array([atom.GetMass() for atom in molecule.GetAtoms()])
    bonds = np.array([(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in molecule.GetBonds()])
    batch = replicate(numbers, masses, bonds, n_replicas)
    shape = batch.positions.shape
    x = torch.as_tensor(molecule.GetConformer().GetPositions() * NM_PER_ANGSTROM).repeat(n_replicas, 1)
    batch.positions = x + 0.005 * torch.randn(shape, generator=generator, dtype=torch.float64)
    thermal = (kT(300.0) / batch.masses[:, None]).sqrt()
    batch.velocities = torch.randn(shape, generator=generator, dtype=torch.float64) * thermal
    batch.forces = 1000.0 * torch.randn(shape, generator=generator, dtype=torch.float64)
    batch.tau_ps = torch.full((n_replicas,), 0.004, dtype=torch.float64)
    return batch


def print_sizes(model: Any) -> None:
    """Parameters of each block."""
    total = sum(p.numel() for p in model.parameters())
    print(f"\n{model.config.arch}: {total} parameters")
    for name, block in model.named_children():
        for part, module in block.named_children():
            count = sum(p.numel() for p in module.parameters())
            if count:
                print(f"  {name + '.' + part:32s} {count:8d}")


def check_symmetries(model: torch.nn.Module, batch, generator: torch.Generator, permutation: bool) -> float:
    """Print the largest deviation under each operation; returns the largest of all."""
    print("\nlargest deviation, float64, weights shaken")
    worst = 0.0
    for operation, deviations in symmetry_errors(model, batch, generator, permutation).items():
        for what, deviation in deviations.items():
            verdict = "ok" if deviation <= TOLERANCE else "BROKEN"
            print(f"  {operation:12s} {what:28s} {deviation:9.1e}  {verdict}")
            worst = max(worst, deviation if np.isfinite(deviation) else float("inf"))
    if not permutation:
        print("  permutation  (bound to one atom order; not a symmetry of this architecture)")
    return worst


def time_call(call, device: str, seconds: float = 0.5) -> float:
    """Median wall time of a call in ms."""
    times, end = [], time.perf_counter() + seconds
    while len(times) < 5 or (time.perf_counter() < end and len(times) < 200):
        start = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times[1:]))


def print_latency(build, device: str, generator: torch.Generator, with_compile: bool) -> None:
    """Each way to compute energy and forces, timed as a run times them, and one call of the jump."""
    print(f"\nus per replica-step, energy + forces, float32, device {device} (* the way a run would take)")
    for name, smiles in MOLECULES.items():
        for size in (1, 64):
            batch = example(smiles, size, generator)
            model = build(batch, size).eval().requires_grad_(False)
            n_atoms = len(batch.numbers) // size
            what = f"  {name:8s} {n_atoms:3d} atoms  batch {size:3d} "
            if model.config.heads.energy:
                print(what, *timed_ways(model, batch, device, with_compile), sep="  ")
            if model.config.heads.jump:
                model, batch = model.to(device), batch.to(device)
                elapsed = time_call(partial(model.jump, batch), device)
                print(f"{what}  jump {1e3 * elapsed / size:.1f} ({elapsed:.2f} ms per call)")


def timed_ways(model, batch, device: str, with_compile: bool) -> list[str]:
    """'way us', the fastest with a star, and what was left out."""
    n_atoms = len(batch.numbers) // batch.n_graphs
    static = (batch.numbers[:n_atoms].numpy(), batch.masses[:n_atoms].numpy(),
              batch.bonds[: len(batch.bonds) // batch.n_graphs].numpy())

    def load(way):
        return Network(model, *static, metadata={"spans": [1]}, device=device, inner=way, rows=batch.n_graphs)

    ways = [way for way in inner.possible_ways(model.config.arch, device) if with_compile or way != "compiled"]
    choice, _ = inner.choose(load, batch.positions.reshape(batch.n_graphs, n_atoms, 3).numpy(), ways)
    return ([f"{way}{'*' if way == choice.way else ''} {us:.1f}" for way, us in choice.us.items()]
            + [f"{way} {why}" for way, why in choice.left_out.items()])


def check_network(config: ModelConfig, where: str, *, with_compile: bool, device: str, seed: int) -> float:
    """Print sizes, symmetries and times; returns the largest deviation under a symmetry (float64).

    where: what a message calls the config; with_compile: time torch.compile as well, up to minutes of compiling.
    """
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(seed)

    def build(batch, n_replicas):
        torch.manual_seed(seed)
        n_atoms = len(batch.numbers) // n_replicas
        bonds = batch.bonds[: len(batch.bonds) // n_replicas]
        return build_model(config, {"numbers": batch.numbers[:n_atoms].numpy(), "bonds": bonds.numpy()})

    batch = example(MOLECULES["aspirin"], 2, generator)
    strange = sorted(set(batch.numbers.tolist()) - set(config.elements))
    if not config.network_class.bound_to_one_molecule and strange:
        raise UserError(f"{where}: elements lacks {strange}, which the test molecules are made of")
    model = build(batch, 2).double().eval()
    print_sizes(model)
    shake(model, generator)
    worst = check_symmetries(model, batch, generator, permutation=not model.bound_to_one_molecule)
    print_latency(build, device, generator, with_compile)
    return worst
