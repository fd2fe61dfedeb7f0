"""The README's one command on molecules that nothing was tuned on: does it end by knowing enough, and at what cost?

    python benchmarks/unseen.py                           # 1-propanol, ethyl acetate, alanine dipeptide
    python benchmarks/unseen.py --molecules propanol
    python benchmarks/unseen.py --molecules fluoroethanol --qm-config configs/qm_pyscf.yaml --samples 100    # with DFT
    python benchmarks/unseen.py --molecules alanine_dipeptide glycine_dipeptide --solvent water

`kstep sample SMILES --learn` and nothing else, at 300 K, GFN2-xTB unless told otherwise; what is there under
outputs/unseen is kept.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from kstep.files import write_json_compact
from kstep.schemas import load_trajectory
from running import RESULTS, ROOT, machine, provenance, sh

RESULT = RESULTS / "unseen.json"
WORK = Path("outputs/unseen")
MOLECULES = {"propanol": "CCCO", "ethyl_acetate": "CCOC(C)=O", "alanine_dipeptide": "CC(=O)N[C@@H](C)C(=O)NC",
             "fluoroethanol": "OCCF", "glycine_dipeptide": "CC(=O)NCC(=O)NC",
             "ibuprofen": "CC(C)Cc1ccc(cc1)C(C)C(=O)O"}
DEFAULT = ("propanol", "ethyl_acetate", "alanine_dipeptide")


def row(path: Path) -> dict:
    """What one run came to: its aim, calls and CPU seconds of learning and sampling apart."""
    run = load_trajectory(path)
    m = run.metadata
    return {"smiles": m["smiles"], "method": m["method"], "atoms": len(run.atom_types), "reached": m["aim"]["reached"],
            "effective_samples": m["aim"]["effective_samples"], "r_hat": m["aim"]["r_hat"], "why": m["aim"]["why"],
            "one_well": m["aim"]["one_well"], "acceptance": m["acceptance"], "judge": m.get("judge"),
            "moves": m["tuning"]["moves"], "network_ladder_K": m["tuning"]["network_ladder_K"],
            "true_calls_training": m["true_calls_training"], "true_calls": m["true_calls"],
            "true_calls_burn_in": m["true_calls_burn_in"], "cpu_s_training": m["cpu_s_training"], "cpu_s": m["cpu_s"],
            "cpu_s_burn_in": m["cpu_burn_in_s"], "failed_true_calls": m["tally"]["failed_true_calls"],
            "figures": m.get("figures")}


def main() -> None:
    """Write benchmarks/results/unseen.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--molecules", nargs="+", choices=list(MOLECULES), default=list(DEFAULT))
    parser.add_argument("--qm-config", default="configs/qm.yaml", help="YAML of the true physics")
    parser.add_argument("--solvent", help="implicit solvent, such as water (default: the gas phase)")
    parser.add_argument("--samples", type=int, help="effective samples that end a run (default: the run's own)")
    args = parser.parse_args()
    other = Path(args.qm_config).stem.removeprefix("qm").strip("_")
    rows = json.loads(RESULT.read_text())["molecules"] if RESULT.exists() else {}
    for molecule in args.molecules:
        name = "_".join(filter(None, (molecule, other, args.solvent)))
        path = WORK / f"{name}.npz"
        sh(ROOT / path, "src/06b_hybrid_integrate_qm.py", "--smiles", MOLECULES[molecule], "--qm-config",
           args.qm_config, "--learn", "--out", path, *(["--effective-samples", args.samples] if args.samples else []),
           *(["--solvent", args.solvent] if args.solvent else []))
        rows[name] = row(ROOT / path)
        print(name, rows[name]["why"], f"{rows[name]['true_calls']} true calls after "
              f"{rows[name]['true_calls_training']} labels", flush=True)
        write_json_compact(RESULT, {"molecules": rows, "machine": machine(), **provenance()})


if __name__ == "__main__":
    main()
