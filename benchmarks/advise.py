"""Does 08_advise.py predict what then really happens?  Forecast, then the real runs, side by side.

Learns and samples a molecule with 06b --learn, runs plain MD at 1 fs with 01b (or takes --plain), then asks 08_advise
without and with the network that was learned, and merges predicted and measured into benchmarks/results/advise.json.
What is there already under outputs/advise is kept; delete it to measure again.

    python benchmarks/advise.py --smiles CCO --name ethanol
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from kstep.files import write_json_compact
from running import RESULTS, ROOT, sh

RESULT = RESULTS / "advise.json"
SAMPLES = 10_000


def figures(path: Path) -> dict:
    """What a forecast said, and how it compares with the runs it was checked against."""
    told = json.loads(path.read_text())
    keep = ("molecule", "method", "machine", "git_commit", "samples", "factor", "plain", "sampler", "learning",
            "checks")
    forecast = {o: {key: row[key] for key in ("plain_cpu_s", "total_cpu_s", "gain", "break_even_samples", "verdict")}
                for o, row in told["forecast"].items()}
    for check in told["checks"]:
        check["run"] = Path(check["run"]).name
    return {**{key: told[key] for key in keep}, "forecast": forecast}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smiles", default="CCO", help="the molecule")
    parser.add_argument("--name", default="ethanol", help="its name")
    parser.add_argument("--steps", type=int, default=400, help="macro-steps of the real run, 64 replicas")
    parser.add_argument("--plain", type=Path, help="finished plain run at 1 fs; default: one is made")
    parser.add_argument("--plain-ps", type=float, default=60.0,
                        help="length of that run per replica, 6 replicas; 0: plain MD is not checked")
    args = parser.parse_args()
    work = ROOT / "outputs/advise" / args.name
    work.mkdir(parents=True, exist_ok=True)
    molecule, real = work / "raw" / args.name, work / f"{args.name}.npz"
    smiles = work / "molecule.smi"
    smiles.write_text(f"{args.smiles} {args.name}\n")
    sh(molecule, "src/00_prep_mols.py", "--smiles", smiles, "--out-dir", work / "raw")
    sh(real, "src/06b_hybrid_integrate_qm.py", "--molecule", molecule, "--learn", "--replicas", 64, "--steps",
       args.steps, "--out", real)
    plain = args.plain or work / "plain" / args.name / "trajectory.npz"
    if args.plain_ps:
        sh(plain, "src/01b_run_qm_baselines.py", "--smiles-file", smiles, "--raw", work / "raw", "--out",
           work / "plain",
           "--replicas", 6, "--set", "dt_fs=1.0", "--set", f"length_ps={args.plain_ps}", "--set", "hot_length_ps=0",
           "--set", "save_interval_steps=2")
    network = real.with_name(real.name + ".learn") / "network.pt"
    runs = [real, plain] if plain.exists() else [real]
    advise = ("src/08_advise.py", "--molecule", molecule, "--samples", SAMPLES, "--check", *runs)
    sh(work / "cold.json", *advise, "--out", work / "cold.json")
    sh(work / "pilot.json", *advise, "--checkpoint", network, "--seed", 1, "--out", work / "pilot.json")
    data = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    data[args.name] = {"before any training": figures(work / "cold.json"),
                       "with a network and a pilot run": figures(work / "pilot.json")}
    write_json_compact(RESULT, data)
    for when, told in data[args.name].items():
        for check in told["checks"]:
            for o in ("torsion", "energy"):
                if check.get(o) and check[o]["predicted_over_measured"]:
                    print(f"{args.name}, {when}, {check['scheme']}, {o}: predicted / measured CPU "
                          f"{check[o]['predicted_over_measured']:.2f}")


if __name__ == "__main__":
    main()
