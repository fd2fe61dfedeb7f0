"""The network of a run: loaded, its way of computing settled, carrying the replicas, and exchanged for a better one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from kstep.molecules.molecule import Molecule
from kstep.runs.execution_choice import n_shards_of, settle_inner
from kstep.runs.network_dynamics import Carrier, ShardedCarrier, make_carrier
from kstep.runs.settings import HybridRun, NetworkRecipe


def load_network(checkpoint, numbers, masses, bonds, method, device="cpu", delta_scale=1.0, inner=None, rows=None):
    """A Network for a molecule; a function of its own so that spawned processes can call it."""
    from kstep.models.network import Network

    return Network.load(checkpoint, numbers, masses, bonds, device=device, delta_scale=delta_scale, method=method,
                        inner=inner, rows=rows)


def network_arguments(checkpoint, molecule: Molecule, method: str, device: str = "cpu", *, delta_scale: float = 1.0,
                      rows: int | None = None) -> dict:
    """What `load_network` takes for a molecule; rows: replicas that a process computes at once."""
    return dict(checkpoint=checkpoint, numbers=molecule.numbers, masses=molecule.masses, bonds=molecule.bonds,
                device=device, delta_scale=delta_scale, method=method, rows=rows)


def n_halves(run: HybridRun) -> int:
    """Half-batches in flight: the network carries one while the physics has the other."""
    return 2 if run.traits.needs_network and (run.n_workers > 1 or run.device != "cpu") else 1


def _arguments_of(run: HybridRun) -> dict:
    rows = -(-run.hybrid.replicas // (n_halves(run) * n_shards_of(run)))
    return {**recipe_of_run(run).arguments, "checkpoint": run.checkpoint, "device": run.device,
            "delta_scale": run.hybrid.delta_scale, "rows": rows}


def recipe_of(molecule: Molecule, method: str) -> NetworkRecipe:
    """How the network of a molecule is built."""
    return NetworkRecipe(load_network, dict(numbers=molecule.numbers, masses=molecule.masses, bonds=molecule.bonds,
                                            method=method))


def recipe_of_run(run: HybridRun) -> NetworkRecipe:
    """The run's own, or that of a network of its molecule."""
    return run.recipe or recipe_of(run.molecule, run.method)


@dataclass
class RunNetwork:
    """A network and what carries replicas with it; inner: how it computes, see `settle_inner`.

    Without a network both are None; a network with a jump head needs nothing that carries.
    """

    network: object = None
    carry: Carrier | ShardedCarrier | None = None
    inner: dict = field(default_factory=dict)

    @staticmethod
    def of(run: HybridRun) -> tuple[HybridRun, RunNetwork]:
        """The run, its `inner` settled, and its network."""
        if not run.traits.needs_network:
            return run, RunNetwork()
        load = recipe_of_run(run).load
        run, network, arguments, inner = settle_inner(run, load, _arguments_of(run), n_halves(run))
        if run.traits.head != "energy":
            return run, RunNetwork(network, None, inner)
        return run, RunNetwork(network, make_carrier(network, load, arguments, n_shards_of(run)), inner)

    def go_on_with(self, checkpoint: Path, run: HybridRun, scheme) -> HybridRun:
        """Put the network of `checkpoint` in the place of a checked run's, while nothing is in flight."""
        run = replace(run, checkpoint=checkpoint)
        arguments = {**_arguments_of(run), "inner": run.hybrid.inner}
        self.network = scheme.network = recipe_of_run(run).load(**arguments)
        self.carry.change_network(self.network, arguments)
        return run

    def close(self) -> None:
        """Stop the processes that carry."""
        if self.carry is not None:
            self.carry.close()
