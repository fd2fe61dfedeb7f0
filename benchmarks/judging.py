"""The figures of one hybrid run that the tables of benchmarks show, those of structure beside their floors."""

from __future__ import annotations

from pathlib import Path

from kstep.analysis.judge.compare import compare
from kstep.analysis.measure.run_samples import samples_of_run
from kstep.schemas import Trajectory, load_trajectory
from kstep.units import PS_PER_FS


def sampled(run: Trajectory) -> dict:
    """What a finished run holds of independent samples, and what they and its network took.

    energy_samples, torsion_samples (None without a torsion that was crossed), torsion: which is the slowest;
    torsion_per_1000_calls: of production; labels, cpu_s_training: of the network; cpu_s: of the run, learning apart.
    """
    found, metadata = samples_of_run(run), run.metadata
    calls = metadata["true_calls"] - metadata["true_calls_burn_in"]
    return {"atoms": len(run.atom_types), "energy_samples": found["energy"], "torsion_samples": found["torsion"],
            "torsion": found["label"], "acceptance": metadata.get("acceptance"), "true_calls": metadata["true_calls"],
            "torsion_per_1000_calls": 1e3 * found["torsion"] / calls if found["torsion"] is not None else None,
            "energy_per_1000_calls": 1e3 * found["energy"] / calls, "labels": metadata["true_calls_training"],
            "cpu_s_training": metadata.get("cpu_s_training"), "cpu_s": metadata["cpu_s"],
            "aim_reached": (metadata.get("aim") or {}).get("reached")}


def judged(reference, path: Path) -> dict:
    """What the run in `path` shows against the Profile of a reference."""
    run = load_trajectory(path)
    found = compare(reference, run)
    metadata = run.metadata
    tally = metadata["tally"]
    produced_ps = tally["macro_steps"] * metadata["jump_fs"] * PS_PER_FS
    moved_ps = produced_ps * (metadata["acceptance"] if metadata["scheme"] == "metropolis" else 1.0)
    price = {f"{kind}_s_per_ps": metadata[f"{kind}_production_s"] / moved_ps if moved_ps else None  # it broke before
             for kind in ("wall", "cpu")}
    out = {
        "scheme": metadata["scheme"], "k_steps": metadata["k_steps"], "dt_fs": metadata["dt_fs"],
        "true_calls": metadata["true_calls"], "true_calls_training": metadata["true_calls_training"],
        "proposals": tally["macro_steps"], "produced_ps": produced_ps,
        "wall_s": metadata["wall_production_s"], "cpu_s": metadata["cpu_s"], **price,
        "status": metadata["status"], "warnings": found["warnings"],
        "drift": found["drift"], "sampling": found["sampling"], "temperature": found["temperature"],
    }
    if found["structure"]:
        for name in ("bond_rmse_A", "angle_rmse_deg"):
            out[name] = {k: found["structure"][name][k] for k in ("value", "floor", "floor_error", "ratio", "verdict")}
    if metadata["scheme"] == "metropolis":
        out["acceptance"] = metadata["acceptance"]
        out["exp_minus_beta_dH"] = {"mean": found["proposals"]["exp_minus_beta_dH"],
                                    "standard_error": found["proposals"]["standard_error"]}
    if metadata["scheme"] == "jump":
        macro = max(tally["macro_steps"], 1)
        out.update(refused_jumps=tally["refused_jumps"], plain_steps=tally["plain_steps"],
                   calls_saved=macro * metadata["k_steps"] / sum(int(a) * n for a, n in tally["attempts"].items()))
    return out
