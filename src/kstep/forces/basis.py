"""Basis sets of PySCF: which elements they have, and the core potentials that belong to them."""

from __future__ import annotations

import warnings

import numpy as np

from kstep.errors import UserError, did_you_mean
from kstep.forces.base import SYMBOLS

STEEPEST_PER_SQUARED_CHARGE = 1.5  # exponent, bohr^-2, that a core needs of its basis: STO-3G has 1.8 and more


def check_basis(numbers: np.ndarray, basis: str) -> None:
    """Refuse a basis PySCF does not know, and elements that it does not cover."""
    from pyscf.gto.basis import ALIAS, load

    missing = []
    for symbol in sorted({SYMBOLS.get(int(z), str(z)) for z in numbers}):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that basis-set-exchange might know more
                load(basis, symbol)
        except Exception:  # BasisNotFoundError is a RuntimeError here, a KeyError there
            missing.append(symbol)
    plain = basis.lower().replace("-", "").replace("_", "")
    if missing and plain in ALIAS:
        raise UserError(f"basis {basis} has no functions for {', '.join(missing)}; def2-SVP has, from H to Rn")
    if missing:
        raise UserError(f"PySCF knows no basis '{basis}'{did_you_mean(plain, ALIAS) or '; def2-SVP is one'}")


def core_potentials(numbers: np.ndarray, basis: str) -> dict[str, str]:
    """Symbol -> name of the effective core potential that belongs to the basis of that element.

    UserError for a basis made for a core potential of another name (GTH, BFD, ccECP): all electrons in it would give
    a number, and a wrong one.
    """
    from pyscf.gto.basis import load, load_ecp

    potentials = {}
    for z in sorted({int(z) for z in numbers}):
        symbol = SYMBOLS[z]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                potential = load_ecp(basis, symbol)
        except Exception:  # an all-electron basis has none
            potential = None
        if potential:
            potentials[symbol] = basis
        elif _steepest(load(basis, symbol)) < STEEPEST_PER_SQUARED_CHARGE * z * z:
            raise UserError(f"basis {basis} has no functions for the core of {symbol}, and brings no core potential in "
                            "their place; def2-SVP does not need one up to Kr and has it beyond")
    return potentials


def _steepest(shells: list) -> float:
    """The largest exponent of the s functions of a basis, bohr^-2."""
    return max((row[0] for shell in shells if shell[0] == 0 for row in shell[1:] if isinstance(row, (list, tuple))),
               default=0.0)
