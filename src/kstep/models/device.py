"""Where a network runs."""

from __future__ import annotations

import logging

from kstep.errors import UserError

DEVICES = ("auto", "cpu", "cuda")

log = logging.getLogger("kstep")


def pick_device(wanted: str) -> str:
    """'cpu' or 'cuda' for 'auto', 'cpu' or 'cuda'; asking for an absent GPU costs one warning, not the run.

    UserError for any other word.
    """
    if wanted not in DEVICES:
        raise UserError(f"there is no device called '{wanted}'; known: {', '.join(DEVICES)}")
    if wanted == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if wanted == "cuda":
        log.warning("no CUDA GPU found; running on the CPU")
    return "cpu"
