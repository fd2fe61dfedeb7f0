"""The free choices of a run's sampler: its masses, its ladder, its moves, and what tuning measures for it."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from typing import Any

import numpy as np

from kstep.molecules.molecule import Molecule
from kstep.runs import exploration, tuning
from kstep.runs.recorder import kept_file
from kstep.runs.settings import HybridRun, start_positions
from kstep.schemes import SCHEMES
from kstep.schemes.ladder import TemperatureLadder, ladder_of
from kstep.units import PS_PER_FS

# keys of a HybridConfig that a report of tuning settles
CHOSEN = ("dt_fs", "k_steps", "moves", "network_ladder_K", "burn_in_steps")

log = logging.getLogger("kstep")


def sampler_masses(molecule: Molecule, hydrogen_mass_Da: float | None) -> np.ndarray:
    """Masses (N,) Da: the physical ones, or with hydrogens made heavier for the sampler alone."""
    masses = np.array(molecule.masses, dtype=np.float64)
    if hydrogen_mass_Da is not None:
        masses[molecule.numbers == 1] = hydrogen_mass_Da
    return masses


def settle_sampler(run: HybridRun, network, carry, pool, cheaper=None):
    """(run, masses (N,) Da, tuning report or None, start (R,N,3) or None): a tuned run's open choices are measured.

    Its replicas start from what the network's own ensemble makes of the start geometries, which costs no true call.  A
    resumed run goes on with what the first one chose, since a second measurement would differ.  cheaper: the pool of a
    truth that is asked before that of `pool`.
    """
    hybrid, molecule = run.hybrid, run.molecule
    masses = sampler_masses(molecule, hybrid.hydrogen_mass_Da)
    if not (hybrid.tune or hybrid.hessian_masses):
        return run, masses, None, None
    kept, ladder = kept_file(run.out, "tuning.json"), ladder_of(hybrid)
    rng = np.random.default_rng([run.seed, 1])
    walls = molecule.species().inside if run.keeps_species else None
    positions = tuning.thermalise(network, carry, start_positions(run), masses, ladder, rng, inside=walls)
    if run.resume and kept.is_file():
        report = json.loads(kept.read_text())
    else:
        report = _tuned(run, network, carry, pool, positions, masses, ladder, rng, cheaper)
    hybrid = hybrid.model_copy(update={key: report[key] for key in CHOSEN if key in report})
    masses, rng = np.array(report["masses_Da"]), np.random.default_rng([run.seed, 3])
    if run.traits.explores:  # the rungs above the coldest are heated by the run's own burn-in
        n_proposals, n_steps = 2 * hybrid.moves, max(1, round(hybrid.k_steps / hybrid.moves))
    else:
        n_proposals, n_steps = hybrid.burn_in_steps, hybrid.k_steps
    positions = tuning.thermalise(network, carry, positions, masses, ladder, rng, n_proposals=n_proposals,
                                  dt_fs=hybrid.dt_fs, n_steps=n_steps, inside=walls)
    return replace(run, hybrid=hybrid), masses, report, positions


def _tuned(run: HybridRun, network, carry, pool, positions: np.ndarray, masses: np.ndarray,
           ladder: TemperatureLadder, rng: np.random.Generator, cheaper=None) -> dict[str, Any]:
    """What tuning chose, and what it was chosen from."""
    hybrid = run.hybrid
    k_steps = hybrid.k_steps or (1 if run.traits.explores else None)
    report = tuning.tune(network, carry, pool, positions, masses, ladder, rng, dt_fs=hybrid.dt_fs, k_steps=k_steps,
                         use_hessian=hybrid.hessian_masses, needs_forces=run.keeps_forces,
                         call_s=network.metadata.get("cpu_s_per_true_call"),
                         wanted_acceptance=hybrid.integrator_acceptance, shortest_mean_fs=hybrid.shortest_mean_fs)
    if not (hybrid.tune and run.traits.explores):
        log.info("%s", tuning.describe(report))
        return report
    explorer = exploration.Explorer(run.molecule, network, carry, np.array(report["masses_Da"]),
                                    report["dt_fs"] * PS_PER_FS, rng,
                                    **SCHEMES[hybrid.scheme].means(hybrid, run.molecule, network))
    cost = report["cpu_s_per_true_call"] if hybrid.call_cost_s is None else hybrid.call_cost_s
    if cheaper is not None:  # moves are made for a step that it judges, which pays its share of the dear call
        costs = tuning.measure_costs(cheaper, carry, positions, masses, hybrid.temperature_K, rng, needs_forces=False)
        report["cpu_s_per_cheaper_call"] = costs.true_call_s
        cost = costs.true_call_s + cost / hybrid.delayed_steps
    report |= exploration.choose_moves(
        explorer, positions, temperature_K=hybrid.temperature_K, cpu_s_per_call=cost,
        shortest_mean_fs=hybrid.shortest_mean_fs, n_moves=hybrid.moves, k_steps=hybrid.k_steps,
        network_ladder_K=hybrid.network_ladder_K, burn_in_steps=hybrid.burn_in_steps)
    log.info("%s", exploration.describe(report))
    return report
