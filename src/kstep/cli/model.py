"""Build a network from YAML: its size, its symmetries, its speed.

    kstep model configs/model.yaml
"""

from __future__ import annotations

import logging

from kstep.cli.flags import add_common_arguments, add_subject
from kstep.config import load_config, parse_assignments

log = logging.getLogger("kstep")


def add_flags(parser, numbered: str | None = None) -> None:
    """Flags of `kstep model`, or of 03."""
    add_subject(parser, "model-config", numbered, default="configs/model.yaml", help="YAML file of the network")
    parser.add_argument("--compile", action="store_true", help="time torch.compile as well: up to minutes of compiling")
    add_common_arguments(parser, device=True, overrides=True)


def run(args) -> int:
    """Print what the network is; 1 where a symmetry is broken."""
    from kstep.models.device import pick_device
    from kstep.models.model_config import ModelConfig
    from kstep.stages.network_check import TOLERANCE, check_network

    config = load_config(ModelConfig, args.model_config, parse_assignments(args.assignments))
    worst = check_network(config, args.model_config, with_compile=args.compile, device=pick_device(args.device),
                          seed=args.seed)
    if worst > TOLERANCE:
        log.error("a symmetry is broken by %.1e, more than %.0e", worst, TOLERANCE)
        return 1
    return 0
