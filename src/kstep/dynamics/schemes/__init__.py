"""A scheme is two functions around the one true call: `propose` and `settle`.

Every scheme has `name`, `k_steps` (baseline timesteps of a macro-step), `dt_ps`, `masses` (N,)
of the velocities it keeps, and `is_thermostatted`: True when it sets the temperature itself.
"""

from kstep.dynamics.schemes.checked import Checked
from kstep.dynamics.schemes.impulse import Impulse
from kstep.dynamics.schemes.jump import Jump
from kstep.dynamics.schemes.metropolis import Metropolis
from kstep.dynamics.schemes.plain import Plain

__all__ = ["Checked", "Impulse", "Jump", "Metropolis", "Plain"]
