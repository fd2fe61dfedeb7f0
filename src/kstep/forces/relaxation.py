"""Geometries brought near minima of a true potential by L-BFGS, all of them side by side.

Source: Liu & Nocedal, Math. Program. 45, 503 (1989), as in ASE.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from kstep.forces.pool import Truth
from kstep.units import ANGSTROM_PER_NM, FORCE_PER_EV_ANGSTROM, NM_PER_ANGSTROM


@dataclass(frozen=True)
class Relaxed:
    """positions (C,N,3) nm, energies (C,) kJ/mol, converged (C,), true_calls (C,); failures: rows that the method has
    no number for.
    """

    positions: np.ndarray
    energies: np.ndarray
    converged: np.ndarray
    true_calls: np.ndarray
    failures: dict[int, str]


def relax(ask: Callable[[np.ndarray, np.ndarray], Truth], numbers: np.ndarray, positions: np.ndarray, *,
          tolerance: float, most_calls: int) -> Relaxed:
    """Bring geometries (C,N,3) nm near minima; ask(positions (r,N,3), rows (r,)) -> Truth, a true call for each.

    A row ends where no atom feels more than tolerance (kJ/mol/nm), after most_calls, or where the method fails, and is
    left where its energy was lowest.
    """
    from ase.optimize import LBFGS  # here, since it takes scipy.optimize along: half a second

    x = np.array(positions, dtype=np.float64)
    best, energies = x.copy(), np.full(len(x), np.inf)
    converged, true_calls, failures = np.zeros(len(x), dtype=bool), np.zeros(len(x), dtype=int), {}
    atoms = [Atoms(numbers=numbers, positions=geometry * ANGSTROM_PER_NM) for geometry in x]
    optimisers = [LBFGS(each, logfile=None) for each in atoms]
    rows = np.arange(len(x))
    for call in range(most_calls):
        truth = ask(x[rows], rows)
        true_calls[rows] += 1
        going = []
        for n, row in enumerate(rows):
            if truth.failed[n]:
                if call == 0:
                    failures[int(row)] = truth.messages[n]
                continue
            if truth.energy[n] < energies[row]:
                best[row], energies[row] = x[row], truth.energy[n]
                strongest = np.linalg.norm(truth.forces[n], axis=1).max()
                converged[row] = strongest <= tolerance
            if not converged[row]:
                atoms[row].calc = SinglePointCalculator(atoms[row], forces=truth.forces[n] / FORCE_PER_EV_ANGSTROM)
                optimisers[row].step()
                x[row] = atoms[row].get_positions() * NM_PER_ANGSTROM
                going.append(row)
        rows = np.array(going, dtype=int)
        if not len(rows):
            break
    return Relaxed(best, energies, converged, true_calls, failures)
