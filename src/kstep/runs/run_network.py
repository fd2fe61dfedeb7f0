"""The network of a run: loaded, its way of computing settled, carrying the replicas, and exchanged for a better one."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from kstep.molecules.molecule import Molecule
from kstep.restraints import Restraint
from kstep.runs.aim import most_macro_steps
from kstep.runs.network_dynamics import Carrier, ShardedCarrier, make_carrier
from kstep.runs.recorder import kept_file
from kstep.runs.settings import HybridRun, NetworkRecipe, start_positions

TYPICAL_STEPS = 1000  # of a proposal whose length is still to be chosen

log = logging.getLogger("kstep")


def load_network(checkpoint, numbers, masses, bonds, method, device="cpu", delta_scale=1.0, inner=None, rows=None,
                 restraints=()):
    """A Network for a molecule, rows: replicas that a process computes at once; spawned processes can call it.

    restraints: added to it here, and nowhere else, for everything that asks or carries with it.
    """
    from kstep.models.network import Network
    from kstep.models.restrained import RestrainedNetwork

    network = Network.load(checkpoint, numbers, masses, bonds, device=device, delta_scale=delta_scale, method=method,
                           inner=inner, rows=rows)
    return RestrainedNetwork(network, restraints, np.asarray(masses)) if restraints else network


def n_halves(run: HybridRun) -> int:
    """Half-batches in flight: the network carries one while the physics has the other.

    On the CPU one that explores for long between true calls keeps all cores busy by itself, with larger batches.
    """
    overlaps = run.device != "cpu" or (run.n_workers > 1 and not run.traits.explores)
    return 2 if run.traits.needs_network and overlaps else 1


def _arguments_of(run: HybridRun) -> dict:
    rows = -(-run.hybrid.replicas // (n_halves(run) * n_shards_of(run)))
    return {**recipe_of_run(run).arguments, "checkpoint": run.checkpoint, "device": run.device,
            "delta_scale": run.hybrid.delta_scale, "rows": rows}


def recipe_of(molecule: Molecule, method: str, restraints: tuple[Restraint, ...] = ()) -> NetworkRecipe:
    """How the network of a molecule is built."""
    return NetworkRecipe(load_network, dict(numbers=molecule.numbers, masses=molecule.masses, bonds=molecule.bonds,
                                            method=method, restraints=restraints))


def recipe_of_run(run: HybridRun) -> NetworkRecipe:
    """The run's own, or that of a network of its molecule."""
    return run.recipe or recipe_of(run.molecule, run.method, run.spec.restraints)


def n_shards_of(run: HybridRun) -> int:
    """Processes that replicas are dealt out to where the network runs on the CPU."""
    return min(run.n_workers, run.hybrid.replicas)


def settle_inner(run: HybridRun, load_network: Callable, arguments: dict, n_halves: int) -> tuple:
    """(run, network, arguments, report): `inner: auto` measured and filled in, the Network that computes so.

    load_network(**arguments): the run's Network, arguments["rows"] what a process computes at once;
    n_halves: half-batches in flight.  The report goes to the metadata; {} where nothing was measured.
    A resumed run goes on as the first one did, since the ways differ in the last bits.
    """
    hybrid = run.hybrid
    if run.traits.head != "energy":
        return run, load_network(**arguments), arguments, {}  # a jump has no inner steps
    kept = kept_file(run.out, "inner.json")
    report, network = {}, None
    if hybrid.inner != "auto":
        way = hybrid.inner
    elif run.resume and kept.is_file():
        report = json.loads(kept.read_text())
        way = report["way"]
    else:
        from kstep.models.execution import choose, possible_ways

        first = load_network(**arguments)
        steps = (hybrid.k_steps or TYPICAL_STEPS) * n_halves * most_macro_steps(hybrid)
        at_once = np.resize(start_positions(run), (arguments["rows"], len(run.molecule), 3))
        choice, network = choose(lambda way: load_network(**arguments, inner=way), at_once,
                                 possible_ways(first.metadata.get("arch"), run.device), n_shards_of(run), steps)
        report, way = asdict(choice), choice.way
        log.info("%s", choice)
    arguments = {**arguments, "inner": way}
    return (replace(run, hybrid=hybrid.model_copy(update={"inner": way})), network or load_network(**arguments),
            arguments, report)


@dataclass
class RunNetwork:
    """A network and what carries replicas with it; inner: how it computes, see `settle_inner`.

    Without a network both are None; a network with a jump head needs nothing that carries.
    """

    network: Any = None
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

    def go_on_with(self, checkpoint: Path, run: HybridRun) -> HybridRun:
        """Put the network of `checkpoint` in the place of the run's, while nothing is in flight."""
        run = replace(run, checkpoint=checkpoint)
        arguments = {**_arguments_of(run), "inner": run.hybrid.inner}
        self.network = recipe_of_run(run).load(**arguments)
        self.carry.change_network(self.network, arguments)
        return run

    def close(self) -> None:
        """Stop the processes that carry."""
        if self.carry is not None:
            self.carry.close()
