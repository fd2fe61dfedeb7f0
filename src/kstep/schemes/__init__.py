"""A scheme is two pure functions around the one true call: `propose` and `settle` (schemes.base).

The registry: a scheme that is imported here is one that a run may ask for, with its keys in HybridConfig.
"""

from kstep.schemes import sampler
from kstep.schemes.base import Scheme
from kstep.schemes.checked import Checked
from kstep.schemes.impulse import Impulse
from kstep.schemes.jump import Jump
from kstep.schemes.metropolis import Metropolis
from kstep.schemes.nested import Nested
from kstep.schemes.plain import Plain

SCHEMES: dict[str, type[Scheme]] = {kind.name: kind for kind in list(vars().values())
                                    if isinstance(kind, type) and issubclass(kind, Scheme) and kind is not Scheme}
PREFERRED = (Nested, Metropolis, Jump)  # where a run names none: the first that its network and its keys belong to
SAMPLERS = tuple(kind for kind in PREFERRED if issubclass(kind, sampler.Sampler))  # exact, the preferred one first
CONTROL = Plain  # the honest competitor: what a run without a network is

__all__ = ["CONTROL", "PREFERRED", "SAMPLERS", "SCHEMES", "Checked", "Impulse", "Jump", "Metropolis", "Nested", "Plain",
           "Scheme"]
