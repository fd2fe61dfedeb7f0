"""md-kstep: carry a molecule k timesteps with a network, ask the true physics once.

    prepare simulate learn sample evaluate load export   the stages, as on the command line (kstep.front)
    populations average                                  what a run says of its molecule
    Result Molecule UserError                            what they give, take and raise
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {**dict.fromkeys(("prepare", "simulate", "learn", "sample", "evaluate", "load", "export", "populations",
                         "average"), "kstep.front"),
         "Result": "kstep.result", "Molecule": "kstep.molecules.molecule", "UserError": "kstep.errors"}

__all__ = ["Molecule", "Result", "UserError", "__version__", "average", "evaluate", "export", "learn", "load",
           "populations", "prepare", "sample", "simulate"]

if TYPE_CHECKING:
    from kstep.errors import UserError
    from kstep.front import average, evaluate, export, learn, load, populations, prepare, sample, simulate
    from kstep.molecules.molecule import Molecule
    from kstep.result import Result


def __getattr__(name: str) -> Any:
    """The front door is loaded when it is first used: nothing heavy comes with `import kstep`."""
    if name not in _HOME:
        raise AttributeError(f"module 'kstep' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
