"""md-kstep: carry a molecule k timesteps with a network, ask the true physics once."""

__version__ = "0.1.0"
