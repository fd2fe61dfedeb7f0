"""A cold start: what a network costs that is learned from a SMILES until learning ends by its own rule, and its holes.

Learns ethanol, aspirin and ibuprofen under GFN2-xTB as `kstep learn` does (one process, one thread), then carries
chains on the network's ladder for 1,000 states more and asks the truth at each of them.  Merges its figures into
benchmarks/results/cold_start.json; a network in outputs/benchmark/cold_start that is finished is kept.

    python benchmarks/cold_start.py [--molecules ethanol aspirin ibuprofen]
"""

from __future__ import annotations

import argparse
import json
import math
import time

import numpy as np

from kstep.config import load_config
from kstep.files import write_json_compact
from kstep.forces.local_pool import EvaluationPool
from kstep.learning.chains import Judgement, half_range
from kstep.learning.cold_start import learn_for
from kstep.learning.learn_config import LearnConfig
from kstep.learning.target import Target
from kstep.models import checkpoint as checkpoints
from kstep.processes import one_thread
from kstep.runs.network_dynamics import Carrier
from kstep.runs.sampler import sampler_masses
from kstep.schemes.network_ladder import NetworkLadder
from kstep.stages.physics import load_physics, open_physics
from kstep.units import PS_PER_FS, kT
from running import RESULTS, ROOT, machine, provenance

RESULT, WORK = RESULTS / "cold_start.json", ROOT / "outputs/benchmark/cold_start"
MOLECULES = {"ethanol": "CCO", "aspirin": "CC(=O)Oc1ccccc1C(=O)O", "ibuprofen": "CC(C)Cc1ccc(cc1)C(C)C(=O)O"}
STATES = 1000
MOVES, MOVE_FS = 5, 200.0  # between two questions
TEMPERATURE_K = 300.0


def ladder_states(target: Target, network, config: LearnConfig, rng) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """d (S,m) kJ/mol at fresh states of a ladder of m rungs, the temperatures (m,), and holes of each rung."""
    rungs_K, n_atoms = target.rungs_K(config), len(target.molecule)
    ladder = NetworkLadder(network, Carrier(network), sampler_masses(target.molecule, config.learn_hydrogen_mass_Da),
                           config.inner_dt_fs * PS_PER_FS, rungs_K, n_moves=MOVES,
                           move_steps=round(MOVE_FS / config.inner_dt_fs))
    n_ladders = -(-16 // len(rungs_K))
    starts = target.molecule.conformers
    x = np.repeat(starts[np.arange(n_ladders) % len(starts), None], len(rungs_K), axis=1)
    u, found = ladder.energy(x), []
    with EvaluationPool(target.spec, 1) as pool:
        for _ in range(math.ceil(STATES / (n_ladders * len(rungs_K)))):
            led = ladder.advance(x, u, rng)
            x, u = led.positions, led.energy  # a chain in a hole stays in it: nothing puts it back here
            truth = pool.evaluate(x.reshape(-1, n_atoms, 3))
            found.append(truth.energy.reshape(u.shape) - u)
    d = np.concatenate(found)
    sound = Judgement(rungs_K, config.hole_kT).sound(d, d)
    return d, np.array(rungs_K), [int(n) for n in (~sound).sum(axis=0)]


def measure(name: str, seed: int) -> dict:
    """Learn one molecule and look at its network."""
    physics = open_physics(MOLECULES[name], load_physics(ROOT / "configs/qm.yaml"), name=name)
    target = Target(molecule=physics.molecule, spec=physics.spec(), method=physics.method,
                    temperatures_K=(TEMPERATURE_K,))
    config = load_config(LearnConfig, ROOT / "configs/learn.yaml")
    began, out = time.process_time(), WORK / f"{name}_{seed}"
    out.parent.mkdir(parents=True, exist_ok=True)
    path = learn_for(target, out, config, seed=seed, resume=True)
    learning_s = time.process_time() - began
    checkpoint = checkpoints.load(path)
    recipe = target.recipe
    network = recipe.load(**recipe.arguments, checkpoint=path, device="cpu")
    d, rungs_K, holes = ladder_states(target, network, config, np.random.default_rng([seed, 9]))
    return {"atoms": len(physics.molecule), "true_calls": checkpoint["true_calls_training"],
            "cpu_s": max(checkpoint["cpu_s_training"], learning_s), "ladder_K": list(map(float, rungs_K)),
            "d_spread_kT": [half_range(column) for column in (d / kT(rungs_K)).T],
            "d_spread_kT_when_frozen": checkpoint["d_spread_kT"],
            "acceptance_expected": checkpoint["acceptance_expected"], "states": int(d.size), "holes": holes}


def main() -> None:
    """Measure what is asked for, and merge it into what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--molecules", nargs="+", choices=MOLECULES, default=list(MOLECULES))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    one_thread()
    for name in arguments.molecules:
        row = measure(name, arguments.seed)
        results = json.loads(RESULT.read_text()) if RESULT.is_file() else {}  # another one may have written meanwhile
        results.setdefault("molecules", {})[name] = row
        results.update(machine=machine(), provenance=provenance())
        write_json_compact(RESULT, results)
        print(f"{name}: {row['true_calls']} true calls, {row['cpu_s']:.0f} s of CPU, spread "
              f"{row['d_spread_kT'][0]:.2f} kT, {sum(row['holes'])} of {row['states']} states in holes", flush=True)


if __name__ == "__main__":
    main()
