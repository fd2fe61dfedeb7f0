"""The free choices of a run's sampler: its masses, its ladder, and what tuning measures for it."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import numpy as np

from kstep.molecules.molecule import Molecule
from kstep.runs.recorder import kept_file
from kstep.runs.settings import HybridRun, start_positions
from kstep.runs.tuning import describe, thermalise, tune
from kstep.schemes.ladder import ladder_of

log = logging.getLogger("kstep")


def sampler_masses(molecule: Molecule, hydrogen_mass_Da: float | None) -> np.ndarray:
    """Masses (N,) Da: the physical ones, or with hydrogens made heavier for the sampler alone."""
    masses = np.array(molecule.masses, dtype=np.float64)
    if hydrogen_mass_Da is not None:
        masses[molecule.numbers == 1] = hydrogen_mass_Da
    return masses


def settle_sampler(run: HybridRun, network, carry, pool):
    """(run, masses (N,) Da, tuning report or None, start (R,N,3) or None): a tuned run's open choices are measured.

    Its replicas start from what the network's own ensemble makes of the start geometries, which
    costs no true call.  A resumed run goes on with what the first one chose, since a second
    measurement would differ.
    """
    hybrid, molecule = run.hybrid, run.molecule
    masses = sampler_masses(molecule, hybrid.hydrogen_mass_Da)
    if not (hybrid.tune or hybrid.hessian_masses):
        return run, masses, None, None
    kept, ladder = kept_file(run.out, "tuning.json"), ladder_of(hybrid)
    rng = np.random.default_rng([run.seed, 1])
    walls = molecule.species().inside if run.keeps_species else None
    positions = thermalise(network, carry, start_positions(run), masses, ladder, rng, inside=walls)
    if run.resume and kept.is_file():
        report = json.loads(kept.read_text())
    else:
        report = tune(network, carry, pool, positions, masses, ladder, rng, dt_fs=hybrid.dt_fs, k_steps=hybrid.k_steps,
                      use_hessian=hybrid.hessian_masses, wanted_acceptance=hybrid.integrator_acceptance,
                      shortest_mean_fs=hybrid.shortest_mean_fs)
        log.info("%s", describe(report))
    hybrid = hybrid.model_copy(update={"dt_fs": report["dt_fs"], "k_steps": report["k_steps"]})
    masses = np.array(report["masses_Da"])
    positions = thermalise(network, carry, positions, masses, ladder, np.random.default_rng([run.seed, 3]),
                           n_proposals=hybrid.burn_in_steps, dt_fs=hybrid.dt_fs, n_steps=hybrid.k_steps, inside=walls)
    return replace(run, hybrid=hybrid), masses, report, positions
