"""A scheme is two functions around the one true call: `propose` and `settle`.

Every scheme has `name`, `k_steps` (baseline timesteps of a macro-step), `dt_ps`, `masses` (N,)
of the velocities it keeps, and `is_thermostatted`: True when it sets the temperature itself.
"""

from kstep.schemes.checked import Checked
from kstep.schemes.impulse import Impulse
from kstep.schemes.jump import Jump
from kstep.schemes.metropolis import Metropolis
from kstep.schemes.plain import Plain

__all__ = ["Checked", "Impulse", "Jump", "Metropolis", "Plain"]
