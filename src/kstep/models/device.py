"""Where a network runs."""

from __future__ import annotations

import logging

log = logging.getLogger("kstep")


def pick_device(wanted: str) -> str:
    """'cpu' or 'cuda' for 'auto', 'cpu' or 'cuda'; asking for an absent GPU costs one warning, not the run."""
    if wanted == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if wanted == "cuda":
        log.warning("no CUDA GPU found; running on the CPU")
    return "cpu"
