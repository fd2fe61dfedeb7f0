"""One run against its reference: every metric beside its noise floor.

`compare` is what scripts and benchmarks call; `verdict.judge` then sets a run against its controls.
"""

from __future__ import annotations

import numpy as np

from kstep.analysis.judge import cost, ensemble
from kstep.analysis.judge.structure import FEWEST_FOR_A_RATE, compare_structure, compare_torsions
from kstep.analysis.measure.profile import Profile, characterise, production_temperature_K
from kstep.errors import UserError
from kstep.schemas import Trajectory


def compare(reference: Trajectory | Profile, hybrid: Trajectory | Profile, *, rdf_maximum_nm: float = 1.0,
            rdf_bins: int = 200, pool_hydrogens: bool = True, seed: int = 0) -> dict:
    """Judge a run (or a control) against a reference of independent plain replicas.

    Returns a nested dict of plain numbers (None where not defined):

        structure     bond_rmse_A, angle_rmse_deg, bond_w1_A, bond_js, angle_w1_deg, angle_js,
                      torsion_w1_deg, torsion_js, rdf_l1, potential_kJ_per_mol; each
                      {"value", "floor", "floor_error", "floor_expected", "ratio" (value / floor),
                      "limit" (ratio up to which it is within; 1.5 for bonds and angles), "verdict"}
        torsions      one dict per rotatable torsion (rotamers, effective samples, split-R-hat,
                      transitions, rate, W1 and its floor)
        sampling      effective samples of energy and slowest torsion, per true call and second; a
                      torsion's are bounded by its crossings (torsions.most_samples), and it is
                      converged with a split-R-hat up to 1.05 and 50 samples or more
        temperature   per element: K, standard error, verdict; kinetic: physical_validation
        drift         slope of the true total energy with its 95 % interval; None for metropolis
        metropolis    acceptance and <exp(-dH/kT)>; None for other schemes
        certificate   mean and spread of E_true - E_ML, force error, beside the run's tolerances; None
                      for schemes that record none
        stretches     X-H stretch positions and their shift, cm-1; None where not defined
        cost          true calls (training apart), seconds, ps, attempts
        warnings      sentences

    Formula of the floor: the metric D_ab of each pair of reference replicas, times
        sqrt( sum_c (s_hyb,c^2 + s_ref,c^2) / sum_c (s_a,c^2 + s_b,c^2) ),
    averaged over pairs; s are the standard errors of coordinate c in the hybrid run, in the
    pooled reference and in the two replicas (statistics.estimate_means).  `floor_expected` is the
    second estimate, sqrt(mean_c (s_hyb,c^2 + s_ref,c^2)) for an RMS, which uses no pair at all: the
    two agree when replicas differ as their own fluctuations say they should.
    Distributions use n_eff in place of 1/s^2, divergences (which grow as 1/n) the square.
    """
    options = {"rdf_maximum_nm": rdf_maximum_nm, "rdf_bins": rdf_bins, "pool_hydrogens": pool_hydrogens}
    run = hybrid.trajectory if isinstance(hybrid, Profile) else hybrid
    base = reference.trajectory if isinstance(reference, Profile) else reference
    check_comparable(base, run)
    if isinstance(hybrid, Trajectory):
        hybrid = characterise(hybrid, **options)
    temperature_K = hybrid.temperature_K if hybrid else None
    if isinstance(reference, Trajectory):
        reference = characterise(reference, temperature_K=temperature_K, **options)
    if reference is None or (hybrid and abs(reference.temperature_K - hybrid.temperature_K) > 0.5):
        raise UserError(f"the baseline of '{base.metadata['molecule']}' has no production frames at "
                        f"{temperature_K or production_temperature_K(base) or 0:g} K; run it at the hybrid's "
                        "temperature")
    if not np.isclose(reference.rdf_maximum_nm, rdf_maximum_nm) or len(reference.rdf.mean) != rdf_bins:
        raise UserError("reference and hybrid were measured with different rdf ranges or bins")

    metadata = run.metadata
    result = {
        "molecule": metadata["molecule"], "scheme": metadata["scheme"], "method": metadata["method"],
        "k_steps": metadata.get("k_steps"), "dt_fs": metadata.get("dt_fs"), "jump_fs": metadata.get("jump_fs"),
        "temperature_K": reference.temperature_K, "role": role_of(run), "status": metadata.get("status"),
        "replicas": int(len(np.unique(run.replica))), "production_frames": hybrid.n_frames if hybrid else 0,
        "reference_replicas": reference.n_replicas, "warnings": [],
    }
    if hybrid is reference:
        pass
    elif reference.n_replicas == 1:
        result["warnings"].append("the reference is one replica, so no noise floor can be given; run at "
                                  "least four independent seeds or replicas")
    elif reference.n_replicas < 4:
        result["warnings"].append(f"the reference has only {reference.n_replicas} independent replicas; "
                                  "a trustworthy noise floor takes at least four")
    result["structure"] = compare_structure(reference, hybrid, seed) if hybrid else None
    result["torsions"] = compare_torsions(reference, hybrid, seed) if hybrid else []
    for torsion in result["torsions"]:
        if torsion["state"] != "one rotamer in the reference" \
                and torsion["effective_samples_reference"] < FEWEST_FOR_A_RATE:
            result["warnings"].append(
                f"the reference holds only {torsion['effective_samples_reference']:.0f} effective samples of torsion "
                f"{torsion['label']}; what depends on it has a floor that is too low")
        if torsion["new_rotamers_deg"]:
            places = ", ".join(f"{c:.0f}" for c in torsion["new_rotamers_deg"])
            result["warnings"].append(f"the run visits a rotamer of {torsion['label']} near {places} degrees that "
                                      "the reference never did; one of them is wrong or too short")
    result["temperature"] = ensemble.temperatures(hybrid) if hybrid else None
    result["kinetic"] = hybrid.kinetic if hybrid else None
    result["drift"] = ensemble.drift(run)
    result["metropolis"] = ensemble.metropolis_identity(run, hybrid)
    result["certificate"] = ensemble.certificate(run)
    result["warnings"] += ensemble.caveats(run)
    result["stretches"] = ensemble.stretches(reference, run)
    result["cost"] = cost.cost_of(run, result["metropolis"])
    result["sampling"] = cost.sampling(hybrid, result["torsions"], result["cost"]) if hybrid else None
    if not hybrid:
        result["warnings"].append("the run holds no production frames, so structure was not judged")
    if ensemble.rescales_energy(run):
        result["warnings"].append("the run rescales its energy, which hides drift; none is reported")
    return result


def check_comparable(reference: Trajectory, hybrid: Trajectory) -> None:
    """Same molecule, same atoms in the same order, same method; else one sentence."""
    r, h = reference.metadata, hybrid.metadata
    name = h.get("molecule")
    if r.get("molecule") != name:
        raise UserError(f"the run is of '{name}' but the reference of '{r.get('molecule')}'")
    if not np.array_equal(reference.atom_types, hybrid.atom_types):
        raise UserError(f"the atoms of '{name}' differ between baseline and run; prepare both from the same "
                        "data/raw folder")
    if not np.array_equal(np.sort(reference.bonds, axis=None), np.sort(hybrid.bonds, axis=None)):
        raise UserError(f"the bonds of '{name}' differ between baseline and run; prepare both from the same "
                        "data/raw folder")
    if r.get("method") != h.get("method"):
        raise UserError(f"'{name}' was run with {h.get('method')} but its baseline with {r.get('method')}; "
                        "compare runs of one method")


def role_of(trajectory: Trajectory) -> str:
    """'plain' and 'no network' are controls; everything else is a hybrid."""
    if trajectory.metadata["scheme"] == "plain":
        return "plain"
    return "no network" if trajectory.metadata.get("delta_scale") == 0 else "hybrid"
