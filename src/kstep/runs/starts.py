"""Starts of a run: conformers relaxed on the true potential and judged, so that each is the molecule.

A force field's conformer can be no molecule at all for the true potential (a ring atom inside out, a bond length that
was guessed).  Some steps of L-BFGS (Liu & Nocedal, Math. Program. 45, 503 (1989), as in ASE), all conformers side by
side in the pool, bring each near a minimum: near enough to have no nonsense left, not a converged one.  What is then
no start (molecules.geometry_faults) is dropped, by name.

A truth that has no forces is given a cheaper one's `spec` to relax on: `settle_starts` asks for nothing else of it.
Where there is none, `unrelaxed_starts` judges conformers as they are.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from kstep.errors import UserError
from kstep.forces import PhysicsSpec
from kstep.forces.pool import Pool, Truth, make_pool
from kstep.molecules.conformers import graph_of, select_distinct
from kstep.molecules.geometry_faults import WINDOW_KJ, Judged, causes_of, judge
from kstep.molecules.molecule import Molecule
from kstep.schemas import read_npz, write_npz
from kstep.units import ANGSTROM_PER_NM, FORCE_PER_EV_ANGSTROM, NM_PER_ANGSTROM

FORCE_TOLERANCE = 100.0  # kJ/mol/nm (0.1 eV/A), of the atom that feels most
MOST_CALLS = 40  # a conformer
POOL_PAYS_S = 5.0  # of work: starting worker processes takes a good part of it
USUAL_CALLS = 15  # a conformer

log = logging.getLogger("kstep")


@dataclass(frozen=True)
class Relaxed:
    """positions (C,N,3) nm, energies (C,) kJ/mol, converged (C,); failures: rows that the method has no number for."""

    positions: np.ndarray
    energies: np.ndarray
    converged: np.ndarray
    failures: dict[int, str]


@dataclass(frozen=True)
class Starts:
    """molecule: its conformers are the starts, best first; record: what the metadata of a run says of them.

    spent: true_calls, wall_s and cpu_s that they cost; kept: whether an earlier part of the run has paid them; first:
    the replica that starts from the first of them.
    """

    molecule: Molecule
    record: dict[str, Any]
    first: int = 0
    spent: dict[str, float] = field(default_factory=dict)
    kept: bool = False

    def of(self, replica: int) -> np.ndarray:
        """Where a replica of plain MD starts, (N,3) nm."""
        return self.molecule.conformers[(replica - self.first) % len(self.molecule.conformers)]

    @property
    def caveats(self) -> list[str]:
        """What the report of a run must say of them."""
        return [self.record["unrelaxed"]] if self.record.get("unrelaxed") else []


def relax(ask, molecule: Molecule, positions: np.ndarray) -> Relaxed:
    """Bring geometries (C,N,3) nm near minima; ask(positions (r,N,3), rows (r,)) -> Truth, a true call for each.

    A row ends at FORCE_TOLERANCE, after MOST_CALLS, or where the method fails, and is left where its energy was lowest.
    """
    from ase.optimize import LBFGS  # here, since it takes scipy.optimize along: half a second

    x = np.array(positions, dtype=np.float64)
    best, energies = x.copy(), np.full(len(x), np.inf)
    converged, failures = np.zeros(len(x), dtype=bool), {}
    atoms = [Atoms(numbers=molecule.numbers, positions=geometry * ANGSTROM_PER_NM) for geometry in x]
    optimisers = [LBFGS(each, logfile=None) for each in atoms]
    rows = np.arange(len(x))
    for call in range(MOST_CALLS):
        truth = ask(x[rows], rows)
        going = []
        for n, row in enumerate(rows):
            if truth.failed[n]:
                if call == 0:
                    failures[int(row)] = truth.messages[n]
                continue
            if truth.energy[n] < energies[row]:
                best[row], energies[row] = x[row], truth.energy[n]
                strongest = np.linalg.norm(truth.forces[n], axis=1).max()
                converged[row] = strongest <= FORCE_TOLERANCE
            if not converged[row]:
                atoms[row].calc = SinglePointCalculator(atoms[row], forces=truth.forces[n] / FORCE_PER_EV_ANGSTROM)
                optimisers[row].step()
                x[row] = atoms[row].get_positions() * NM_PER_ANGSTROM
                going.append(row)
        rows = np.array(going, dtype=int)
        if not len(rows):
            break
    return Relaxed(best, energies, converged, failures)


def settle_starts(molecule: Molecule, spec: PhysicsSpec, *, wanted: int, first: int = 0, n_workers: int = 1,
                  must_hold: bool = True, keep: Path | None = None, resume: bool = False) -> Starts:
    """`wanted` conformers (fewer where there are no more) relaxed on the true potential and judged, from number
    `first` on in a circle; what is dropped is replaced by the next.

    must_hold: whether conformers that turn into another species on relaxing are no starts even where all of them do;
    else the run starts from them as they were prepared, and says so.  keep: the file in which a resumed run finds them.
    Conformers that were relaxed on this potential at their preparation are taken as they are.  Raises UserError, with
    the cause, where no start is left, and for a method without forces.
    """
    spec.require_forces("relaxing a molecule on it", "relax on a cheaper method, or set relax_starts: false")
    if molecule.relaxed_on == surface_of(molecule, spec):
        return Starts(molecule, {"relaxed_on": molecule.relaxed_on, "at_preparation": True,
                                 "count": len(molecule.conformers)})
    asked = {"method": surface_of(molecule, spec), "smiles": molecule.smiles, "wanted": wanted, "first": first,
             "must_hold": must_hold, "conformers": molecule.conformers.tolist()}
    found = _kept(molecule, keep, asked) if resume and keep is not None else None
    if found is None:
        found = _relaxed(molecule, spec, wanted, first, n_workers, must_hold)
        if keep is not None:
            _keep(found, keep, asked)
    log.info("%s", describe(found))
    return found


def surface_of(molecule: Molecule, spec: PhysicsSpec) -> str:
    """The method, with charge and multiplicity where a config overrides the molecule's: what tells energies apart."""
    other = [f"{key} {spec.settings[key]}" for key in ("charge", "multiplicity")
             if spec.settings.get(key, getattr(molecule, key)) != getattr(molecule, key)]
    return " with ".join(filter(None, [spec.method, " and ".join(other)]))


def judged_starts(molecule: Molecule) -> Starts:
    """The conformers of a molecule whose force field is the true potential, in which they are minimised already.

    Raises UserError, with the cause, where none of them is a start.
    """
    minimised_in = molecule.relaxed_on or molecule.force_field
    judged = judge(molecule, molecule.conformers, molecule.conformer_energies, WINDOW_KJ)
    if not judged.dropped:  # as it is, duplicates too: nothing has moved
        return Starts(molecule, {"relaxed_on": minimised_in, "at_preparation": True,
                                 "count": len(molecule.conformers)})
    if not len(judged.kept):
        raise UserError(f"no conformer of {molecule.name} is a start ({causes_of(judged.dropped)}); prepare it again")
    found = _chosen(molecule, molecule.conformers, molecule.conformer_energies, judged)
    starts = Starts(found, {"relaxed_on": minimised_in, "at_preparation": True, "count": len(found.conformers),
                            "dropped": judged.dropped})
    log.warning("%s", describe(starts))
    return starts


def unrelaxed_starts(molecule: Molecule, spec: PhysicsSpec) -> Starts:
    """Those of `judged_starts`, for a truth that has no forces to relax them by; the run says so."""
    starts = judged_starts(molecule)
    words = (f"{spec.method} has no forces to relax the starts of {molecule.name} by: they are minima of "
             f"{starts.record['relaxed_on'] or 'no method that is known'}")
    log.warning("%s", words)
    return replace(starts, record={**starts.record, "unrelaxed": words})


def describe(starts: Starts) -> str:
    """One line about starts."""
    record, energies = starts.record, starts.molecule.conformer_energies
    words = [f"{starts.molecule.name}: {record['count']} start{'s' * (record['count'] > 1)} over "
             f"{np.ptp(energies):.1f} kJ/mol"]
    if record.get("true_calls"):
        words.append(f"relaxed on {record['relaxed_on']} in {record['true_calls']} true calls")
    if record.get("unconverged"):
        words.append(f"{record['unconverged']} of them not to the end")
    if record.get("merged"):
        words.append(f"{record['merged']} more became one of them")
    if record.get("dropped"):
        words.append(f"dropped: {causes_of(record['dropped'])}")
    return "; ".join(words)


def _relaxed(molecule: Molecule, spec: PhysicsSpec, wanted: int, first: int, n_workers: int,
             must_hold: bool) -> Starts:
    wall, cpu, n = time.perf_counter(), time.process_time(), len(molecule.conformers)
    numbers = (np.arange(n) + first) % n  # candidates, in the order in which they are taken
    positions, energies = np.zeros((0, len(molecule), 3)), np.zeros(0)
    converged, failures = np.zeros(0, dtype=bool), {}
    judged, kept, n_kept = Judged(np.zeros(0, dtype=int), []), molecule, 0
    with _asking(spec, n_workers) as asker:
        while n_kept < wanted and len(positions) < n:
            more = numbers[len(positions):][:wanted - n_kept]
            new = relax(asker.ask, molecule, molecule.conformers[more])
            failures |= {row + len(positions): cause for row, cause in new.failures.items()}
            positions = np.concatenate([positions, new.positions])
            energies = np.concatenate([energies, new.energies])
            converged = np.concatenate([converged, new.converged])
            judged = judge(molecule, positions, energies, WINDOW_KJ, failures)
            kept = _chosen(molecule, positions, energies, judged)
            n_kept = len(kept.conformers)
        spent = {"true_calls": asker.true_calls, "wall_s": time.perf_counter() - wall,
                 "cpu_s": time.process_time() - cpu + asker.cpu_s}
    dropped = [{**each, "conformer": int(numbers[each["conformer"]])} for each in judged.dropped]
    record: dict[str, Any] = {"relaxed_on": spec.method, "judged": len(positions), "dropped": dropped,
                              "merged": len(judged.kept) - len(kept.conformers),
                              "unconverged": int((~converged[judged.kept]).sum()),
                              "true_calls": spent["true_calls"]}
    if not len(judged.kept):
        kept = _as_prepared(molecule, spec, dropped, must_hold or not judged.changed)
        record["unrelaxed"] = (f"{molecule.name} does not hold on {spec.method}: when its conformers are relaxed, "
                               f"{dropped[0]['cause']}; the run starts from them as they were prepared")
        log.warning("%s", record["unrelaxed"])
    else:
        kept = replace(kept, relaxed_on=surface_of(molecule, spec))
    return Starts(kept, {**record, "count": len(kept.conformers)}, first, spent)


def _as_prepared(molecule: Molecule, spec: PhysicsSpec, dropped: list[dict[str, Any]], refuse: bool) -> Molecule:
    """The molecule with those of its conformers that are it, unrelaxed; UserError where there are none, or at once."""
    judged = judge(molecule, molecule.conformers, molecule.conformer_energies, np.inf)
    if refuse or not len(judged.kept):
        raise UserError(f"no conformer of {molecule.name} is a start on {spec.method} ({causes_of(dropped)}); check "
                        "charge, multiplicity and SMILES, or take another method")
    return _chosen(molecule, molecule.conformers, molecule.conformer_energies, judged)


def _chosen(molecule: Molecule, positions: np.ndarray, energies: np.ndarray, judged: Judged) -> Molecule:
    """The molecule with the geometries that were kept as its conformers, each once."""
    if not len(judged.kept):
        return replace(molecule, conformers=positions[:0], conformer_energies=energies[:0])
    rows = judged.kept
    distinct = [rows[n] for n, _ in select_distinct(graph_of(molecule, positions[rows]), energies[rows])]
    return replace(molecule, conformers=positions[distinct], conformer_energies=energies[distinct])


@dataclass
class _Asker:
    """The true potential: of the spec's scheduler, or in this process until calls show that they are worth a pool."""

    spec: PhysicsSpec
    n_workers: int
    here: Pool
    wide: Pool | None = None
    call_s: float | None = None

    def ask(self, positions: np.ndarray, rows: np.ndarray) -> Truth:
        if self.call_s is None:
            began = time.perf_counter()
            first = self.here.evaluate(positions[:1], rows[:1])
            self.call_s = time.perf_counter() - began
            work_s = self.call_s * USUAL_CALLS * len(rows)
            if self.spec.scheduler is None and min(self.n_workers, len(rows)) > 1 and work_s > POOL_PAYS_S:
                self.wide = make_pool(self.spec, min(self.n_workers, len(rows)))
            rest = self._pool.evaluate(positions[1:], rows[1:])
            return Truth(np.concatenate([first.energy, rest.energy]), np.concatenate([first.forces, rest.forces]),
                         np.concatenate([first.failed, rest.failed]), (*first.messages, *rest.messages))
        return self._pool.evaluate(positions, rows)

    @property
    def _pool(self) -> Pool:
        return self.wide or self.here

    @property
    def true_calls(self) -> int:
        return self.here.true_calls + (self.wide.true_calls if self.wide is not None else 0)

    @property
    def cpu_s(self) -> float:
        return self.here.cpu_s + (self.wide.cpu_s if self.wide is not None else 0.0)


@contextmanager
def _asking(spec: PhysicsSpec, n_workers: int) -> Iterator[_Asker]:
    with make_pool(spec) as here:
        asker = _Asker(spec, n_workers, here)
        try:
            yield asker
        finally:
            if asker.wide is not None:
                asker.wide.close()


def kept_starts(out: str | Path) -> Path:
    """Where the run that writes `out` keeps its starts."""
    return Path(f"{out}.starts")


def _keep(starts: Starts, path: Path, asked: dict[str, Any]) -> None:
    text = {"asked": asked, "record": starts.record, "spent": starts.spent, "relaxed_on": starts.molecule.relaxed_on}
    write_npz(path, {"conformers": starts.molecule.conformers, "energies": starts.molecule.conformer_energies,
                     "text": np.array(json.dumps(text))})


def _kept(molecule: Molecule, path: Path, asked: dict[str, Any]) -> Starts | None:
    """What an earlier part of the same run kept; None where it was asked for other starts, or kept none."""
    if not path.is_file():
        return None
    arrays = read_npz(path)
    text = json.loads(str(arrays["text"]))
    if text["asked"] != json.loads(json.dumps(asked)):
        return None
    found = replace(molecule, conformers=arrays["conformers"], conformer_energies=arrays["energies"],
                    relaxed_on=text["relaxed_on"])
    return Starts(found, text["record"], asked["first"], text["spent"], kept=True)
