"""The unit system: nm, ps, Da, kJ/mol, elementary charge, K.

In these units m v^2 / 2 is already kJ/mol and force / mass is nm/ps^2, so no conversion
factor appears in a formula of the dynamics.  Backends convert once, at their own edge, with
the constants below (CODATA 2018).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import numpy as np

Temperature = TypeVar("Temperature", float, "np.ndarray")  # K

BOLTZMANN = 0.00831446261815324  # kJ/mol/K
AVOGADRO = 6.02214076e23

NM_PER_ANGSTROM = 0.1
ANGSTROM_PER_NM = 10.0
NM_PER_BOHR = 0.0529177210903
KJ_PER_HARTREE = 2625.4996394798254
KJ_PER_EV = 96.48533212331002
KJ_PER_KCAL = 4.184
J_PER_KJ = 1000.0
PS_PER_FS = 1.0e-3
FS_PER_PS = 1.0e3
PS_PER_NS = 1.0e3
SECONDS_PER_HOUR = 3600
SECONDS_PER_DAY = 86400
PS_PER_ASE_TIME = 0.010180505717871193  # A sqrt(Da/eV)
DEBYE_PER_E_NM = 48.0320471257  # D per elementary charge and nm
WAVENUMBER_PER_THZ = 33.3564095198152  # cm^-1 per ps^-1

FORCE_PER_HARTREE_BOHR = KJ_PER_HARTREE / NM_PER_BOHR  # kJ/mol/nm per Ha/bohr
FORCE_PER_EV_ANGSTROM = KJ_PER_EV / NM_PER_ANGSTROM  # kJ/mol/nm per eV/A


def kT(temperature_K: Temperature) -> Temperature:
    """Thermal energy k_B T in kJ/mol, of a number or of an array."""
    return BOLTZMANN * temperature_K
