"""Electron correlation on a converged field of PySCF: MP2, CCSD, CCSD(T), and the perturbative part of double hybrids.

MP2 has forces, unless its integrals are fitted; the others have none that anyone would pay for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
from pydantic import BeforeValidator

from kstep.errors import PhysicsError, UserError

# None: the field alone
Correlation: TypeAlias = Annotated[Literal["mp2", "ccsd", "ccsd(t)"] | None,
                                   BeforeValidator(lambda word: word.lower() if isinstance(word, str) else word)]
# of the norm of a change of the amplitudes, beside the tolerance of the energy, which is of second order in it
AMPLITUDES = 0.03


@dataclass(frozen=True)
class DoubleHybrid:
    """E = E_xc + share * E_MP2 on the orbitals of E_xc; xc: E_xc as PySCF writes it."""

    xc: str
    share: float


DOUBLE_HYBRIDS = {
    "B2PLYP": DoubleHybrid("0.53*HF + 0.47*B88, 0.73*LYP", 0.27),  # Grimme, J. Chem. Phys. 124, 034108 (2006), eq. 3
}


def double_hybrid(functional: str) -> DoubleHybrid | None:
    """The double hybrid of that name, None for any other functional."""
    return DOUBLE_HYBRIDS.get(functional.upper())


def is_correlated(settings: Mapping[str, Any]) -> bool:
    """Whether something is computed on top of the field; settings: those of ScfSettings, by name."""
    return settings.get("correlation") is not None or double_hybrid(settings.get("functional", "HF")) is not None


def has_forces(settings: Mapping[str, Any]) -> bool:
    """Whether PySCF gives affordable forces."""
    return not is_correlated(settings) or (settings.get("correlation") == "mp2" and not settings.get("density_fit"))


def check_correlation(settings, multiplicity: int) -> None:
    """Refuse what does not go together, of ScfSettings; UserError says what would."""
    hybrid, what = double_hybrid(settings.functional), settings.correlation or settings.functional
    if not is_correlated(settings.model_dump()):
        return
    if settings.correlation and hybrid:
        raise UserError(f"functional {settings.functional} brings its own correlation; leave correlation: "
                        f"{settings.correlation} out")
    if settings.correlation and settings.functional.upper() != "HF":
        raise UserError(f"correlation: {what} goes on top of Hartree-Fock; set functional: HF")
    if settings.solvent is not None:
        raise UserError(f"{what} is computed in the gas phase alone; leave solvent: {settings.solvent} out")
    if settings.dispersion is not None:
        raise UserError(f"{what} is computed without an empirical dispersion; leave dispersion: {settings.dispersion} "
                        "out")
    if settings.unrestricted is False and multiplicity != 1:
        raise UserError(f"{what} of an open shell is computed on unrestricted orbitals; leave unrestricted: false out")


def correlate(field, settings) -> tuple[float, Any]:
    """Total energy (Ha) of a converged field and the correlation that ScfSettings add to it, and PySCF's solver of it.

    Second order: Moller & Plesset, Phys. Rev. 46, 618 (1934); CCSD(T): Raghavachari et al., Chem. Phys. Lett. 157, 479
    (1989); of open shells both on unrestricted orbitals.  With frozen_core the orbitals of the noble gas below each
    atom take no part.  Raises PhysicsError where the amplitudes do not converge.
    """
    from pyscf import cc, mp

    hybrid = double_hybrid(settings.functional)
    by_perturbation = hybrid is not None or settings.correlation == "mp2"
    solver = mp.MP2(field) if by_perturbation else cc.CCSD(field)
    if not by_perturbation:
        solver.conv_tol, solver.max_cycle = settings.conv_tol, settings.max_iterations
        solver.conv_tol_normt = AMPLITUDES * np.sqrt(settings.conv_tol)
    if settings.frozen_core:
        solver.set_frozen()
    solver.verbose = 0
    solver.kernel()
    if hybrid is not None:
        return float(field.e_tot + hybrid.share * solver.e_corr), solver
    if not by_perturbation and not solver.converged:
        raise PhysicsError(f"the amplitudes of coupled cluster did not converge in {solver.max_cycle} cycles")
    triples = float(solver.ccsd_t()) if settings.correlation == "ccsd(t)" else 0.0
    return float(field.e_tot + solver.e_corr) + triples, solver


def slope_of(solver) -> np.ndarray:
    """dE/dx (N,3) in Ha/bohr of a solved MP2."""
    slope = solver.nuc_grad_method()
    slope.verbose = 0
    return np.asarray(slope.kernel())
