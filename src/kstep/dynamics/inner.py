"""How a run computes the network's force: as the settings say, or measured here and then kept."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, replace

import numpy as np

from kstep.dynamics.hybrid_settings import HybridRun, start_positions
from kstep.dynamics.recorder import kept_file

log = logging.getLogger("kstep")


def settle_inner(run: HybridRun, load_network: Callable, arguments: dict, n_halves: int) -> tuple:
    """(run, network, arguments, report): `inner: auto` measured and filled in, the Network that computes so.

    load_network(**arguments): the run's Network; n_halves: half-batches in flight.  The report goes
    to the metadata; {} where nothing was measured.  A resumed run goes on as the first one did,
    since the ways differ in the last bits.
    """
    hybrid = run.hybrid
    n_shards = min(run.n_workers, hybrid.replicas)
    rows = -(-hybrid.replicas // (n_halves * n_shards))
    arguments = {**arguments, "rows": rows}
    if hybrid.scheme == "jump":
        return run, load_network(**arguments), arguments, {}  # its map has no inner steps
    kept = kept_file(run.out, "inner.json")
    report, network = {}, None
    if hybrid.inner != "auto":
        way = hybrid.inner
    elif run.resume and kept.is_file():
        report = json.loads(kept.read_text())
        way = report["way"]
    else:
        from kstep.models.inner import choose, possible_ways

        first = load_network(**arguments)
        steps = (hybrid.k_steps or 1) * n_halves * (hybrid.steps + hybrid.burn_in_steps)
        choice, network = choose(lambda way: load_network(**arguments, inner=way), np.resize(
            start_positions(run), (rows, len(run.molecule), 3)), possible_ways(first.metadata["arch"], run.device),
            n_shards, steps)
        report, way = asdict(choice), choice.way
        log.info("%s", choice)
    arguments["inner"] = way
    return (replace(run, hybrid=hybrid.model_copy(update={"inner": way})), network or load_network(**arguments),
            arguments, report)
