"""Learn a network for sampling from true calls alone: <out>.learn/{network.pt, labels.npz}.

    kstep learn CCO --out ethanol.npz    # then: kstep sample CCO --checkpoint ethanol.npz.learn/network.pt --tune ...
"""

from __future__ import annotations

import logging
from dataclasses import replace

from kstep.cli import sample
from kstep.cli.program import log_beside

log = logging.getLogger("kstep")


def add_flags(parser, numbered: str | None = None) -> None:
    """Flags of `kstep learn`: those of `kstep sample`."""
    sample.add_flags(parser, numbered)


def run(args) -> None:
    """Learn, and say where the network is."""
    from kstep.stages.sampling import learn_alone

    settings = replace(sample.load(args), learn=True)
    with log_beside(settings.out):
        log.info("-> %s", learn_alone(settings))
