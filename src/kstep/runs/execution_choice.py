"""How a run computes the network's force: as the settings say, or measured here and then kept."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, replace

import numpy as np

from kstep.runs.recorder import kept_file
from kstep.runs.settings import HybridRun, start_positions

log = logging.getLogger("kstep")


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
        steps = (hybrid.k_steps or 1) * n_halves * (hybrid.steps + hybrid.burn_in_steps)
        at_once = np.resize(start_positions(run), (arguments["rows"], len(run.molecule), 3))
        choice, network = choose(lambda way: load_network(**arguments, inner=way), at_once,
                                 possible_ways(first.metadata.get("arch"), run.device), n_shards_of(run), steps)
        report, way = asdict(choice), choice.way
        log.info("%s", choice)
    arguments = {**arguments, "inner": way}
    return (replace(run, hybrid=hybrid.model_copy(update={"inner": way})), network or load_network(**arguments),
            arguments, report)
