"""Populations and averages as text for the terminal, the answer first."""

from __future__ import annotations

import numpy as np

from kstep.analysis.measure.observables import Observed
from kstep.analysis.measure.populations import Conformer, Populations
from kstep.analysis.measure.statistics import FEWEST_SAMPLES, MOST_R_HAT
from kstep.analysis.metrics.cells import NOT_DEFINED, with_error
from kstep.analysis.show.text import aligned


def format_populations(found: Populations) -> str:
    """A line that says what is known and whether it can be trusted, the table of conformers, and what else to know."""
    head = (f"{found.molecule}, {found.method or 'unknown method'} at {found.temperature_K:g} K: "
            f"{_counted(len(found.conformers), 'conformer')}, {_counted(found.chains, 'chain')}, {found.frames} frames"
            + (f" at {', '.join(f'{T:g}' for T in found.rungs_K)} K" if len(found.rungs_K) > 1 else ""))
    state = "converged" if found.converged else f"NOT CONVERGED: {found.problems[0]}"
    still = [*found.one_well, *(found.never_crossed if len(found.conformers) < 2 else [])]
    alone = f"; in one well all the time: {', '.join(still)}" if still else ""
    lines = [f"{head}; {state}{alone}", *[f"not converged: {problem}" for problem in found.problems[1:]]]
    header = ["conformer", "torsions / deg", "population", "G / kJ/mol", "G / kcal/mol", "samples", "entered", "R-hat"]
    lines += aligned((header, [_row(c) for c in found.conformers]))
    if found.torsions:
        lines.append(f"torsions: {', '.join(found.torsions)}")
    if any(c.images > 1 for c in found.conformers):
        lines.append("* with its mirror image")
    if found.others["count"]:
        lines.append(f"{_counted(int(found.others['count']), 'rarer conformer')}: "
                     f"{with_error(found.others['population'], found.others['error'])} together")
    lines.append("entropy of the conformers: "
                 f"{with_error(found.entropy_J_per_mol_K, found.entropy_error_J_per_mol_K)} J/mol/K")
    return "\n".join([*lines, *[f"note: {note}" for note in found.notes]])


def _counted(n: int, word: str) -> str:
    return f"{n} {word}{'' if n == 1 else 's'}"


def _row(conformer: Conformer) -> list[str]:
    c = conformer
    return [c.label + ("*" if c.images > 1 else ""), " ".join(f"{angle:.0f}" for angle in c.wells_deg.values()) or "-",
            f"{c.population:.3f} +- {c.population_error:.3f}",
            f"{c.free_energy_kJ:.2f} +- {c.free_energy_error_kJ:.2f}",
            f"{c.free_energy_kcal:.2f} +- {c.free_energy_error_kcal:.2f}", f"{c.effective_samples:.0f}",
            str(c.entered), NOT_DEFINED if c.r_hat is None else f"{c.r_hat:.2f}"]


def format_averages(found: dict[str, Observed]) -> str:
    """One line per observable: its average and error, effective samples and split-R-hat of the chains."""
    rows = []
    for name, each in found.items():
        columns = [np.atleast_1d(c).ravel() for c in (each.mean, each.error, each.effective_samples, each.r_hat)]
        for place, (mean, error, samples, r_hat) in enumerate(zip(*columns)):
            good = each.warning is None and r_hat <= MOST_R_HAT and samples >= FEWEST_SAMPLES
            rows.append([name if len(columns[0]) == 1 else f"{name}[{place}]", f"{mean:.6g} +- {error:.2g}",
                         f"{samples:.0f}", f"{r_hat:.2f}" if np.isfinite(r_hat) else NOT_DEFINED,
                         "" if good else "not converged"])
    first = next(iter(found.values()))
    whose = {"true": "", "network": "; the frames follow the network's potential, not the method's"}
    state = "" if all(each.converged for each in found.values()) else "; NOT CONVERGED"
    state += f": {first.warning}" if first.warning else ""
    head = (f"{first.temperature_K:g} K, {_counted(first.chains, 'chain')}, {first.frames} frames{state}"
            + whose.get(first.follows, "; the scheme promises no ensemble"))
    return "\n".join([head, *aligned((["observable", "average", "samples", "R-hat", ""], rows))])
