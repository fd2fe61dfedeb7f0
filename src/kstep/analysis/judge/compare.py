"""One run against its reference: every metric of the registry, and what its reader must know.

`compare` is what scripts and benchmarks call; `controls.judge` then sets a run against its controls.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kstep.analysis.judge.verdict import Role
from kstep.analysis.measure.averages import pairs_of, told_apart
from kstep.analysis.measure.profile import Profile, characterise, production_temperature_K
from kstep.analysis.metrics import METRICS
from kstep.analysis.metrics.metric import Comparison
from kstep.errors import UserError
from kstep.schemas import Trajectory
from kstep.scheme_traits import traits_of


def compare(reference: Trajectory | Profile, hybrid: Trajectory | Profile, *, rdf_maximum_nm: float = 1.0,
            rdf_bins: int = 200, seed: int = 0) -> dict:
    """Judge a run (or a control) against a reference of independent plain replicas.

    Returns a nested dict of plain numbers and verdicts: facts of the run, "warnings" (sentences), and an entry for each
    of `METRICS` under its name, None where it is not defined; those that stand beside a floor are in "structure".
    """
    options: dict[str, Any] = {"rdf_maximum_nm": rdf_maximum_nm, "rdf_bins": rdf_bins}
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
        "replicas": len(np.unique(run.replica)), "production_frames": hybrid.n_frames if hybrid else 0,
        "reference_replicas": reference.n_replicas, "structure": {} if hybrid else None, "warnings": [],
    }
    if hybrid is not reference:
        result["warnings"] += _about_reference(reference) + [f"the reference: {words}" for words in caveats(base)]
    comparison = Comparison(reference, hybrid, run, seed)
    for metric in METRICS:
        value = comparison.value(metric)
        if metric.section is None:
            result[metric.name] = value
        elif value is not None:
            result[metric.section][metric.name] = value
        result["warnings"] += metric.warnings(comparison)
    result["warnings"] += caveats(run)
    if not hybrid:
        result["warnings"].append("the run holds no production frames, so structure was not judged")
    return result


def _about_reference(reference: Profile) -> list[str]:
    if reference.n_replicas == 1:
        return ["the reference is one replica, so no noise floor can be given; run at least four independent seeds or "
                "replicas"]
    return [] if reference.n_replicas >= 4 else [
        f"the reference has only {reference.n_replicas} independent replicas; a trustworthy noise floor takes at "
        "least four"]


def caveats(run: Trajectory) -> list[str]:
    """What the scheme of a run does not promise, and whether the run came to its end, in sentences."""
    metadata = run.metadata
    out, status = list(metadata.get("caveats", _before_caveats(metadata))), metadata.get("status") or ""
    learned = (metadata.get("tally") or {}).get("learned")
    if learned:
        out.append(f"the network was trained anew at macro-step {', '.join(str(x['macro_step']) for x in learned)}; "
                   "production is what came after")
    if status.startswith(("stopped", "broke")):
        out.append(f"the run {status}")
    return out


def _before_caveats(metadata: dict) -> list[str]:
    """What schemes said of themselves before runs stored it."""
    if traits_of(metadata).ensemble == "network":
        return [f"{metadata['scheme']} follows the network's force, so its ensemble is the network's; E_true - E_ML "
                "and the force error say how near that is to the true one"]
    if (metadata.get("config") or {}).get("project_residual"):
        return ["the kicks were projected off bond lengths and angle distances: the map is reversible but not "
                "symplectic, and the run samples neither the true potential nor the network's exactly"]
    return []


def check_comparable(reference: Trajectory, hybrid: Trajectory) -> None:
    """Same molecule, same atoms in the same order, same method; else one sentence."""
    r, h = reference.metadata, hybrid.metadata
    name = h.get("molecule")
    if r.get("molecule") != name:
        raise UserError(f"the run is of '{name}' but the reference of '{r.get('molecule')}'")
    if not np.array_equal(reference.atom_types, hybrid.atom_types):
        raise UserError(f"the atoms of '{name}' differ between baseline and run; prepare both from the same "
                        "data/raw folder")
    if pairs_of(reference) != pairs_of(hybrid):
        raise UserError(f"the bonds of '{name}' differ between baseline and run; prepare both from the same "
                        "data/raw folder")
    if r.get("method") != h.get("method"):
        raise UserError(f"'{name}' was run with {h.get('method')} but its baseline with {r.get('method')}; "
                        "compare runs of one method")
    if apart := told_apart(reference, hybrid):
        raise UserError("{} cannot be compared: they are of two {}; give runs of one".format(*apart))


def role_of(trajectory: Trajectory) -> Role:
    """A scheme without a network, or one whose network was switched off, is a control; everything else is a hybrid."""
    if not traits_of(trajectory.metadata).needs_network:
        return Role.PLAIN
    return Role.NO_NETWORK if trajectory.metadata.get("delta_scale") == 0 else Role.HYBRID
