"""Every scheme against physical_validation on ethanol: the figures of the table of ensembles in docs/RESULTS.md.

MMFF94 (OpenMM, Reference platform) and, for metropolis, GFN2-xTB are the true potentials.  The
network is a deliberately imperfect pair_mlp, fitted for a few seconds to few labels of hot frames, so that
impulse and metropolis have a residual to correct.  Figures are merged into benchmarks/results/validation.json; a
row that is there is kept, so an interrupted run continues.

    python benchmarks/validation.py
    python benchmarks/validation.py --rows "plain 0.5 fs" "metropolis"
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
import numpy as np  # noqa: E402

from kstep.files import write_json_compact  # noqa: E402
from kstep.forces import physics_spec  # noqa: E402
from kstep.forces.local_pool import EvaluationPool  # noqa: E402
from kstep.forces.openmm import MDConfig, make_context, read_system  # noqa: E402
from kstep.forces.pool import Truth  # noqa: E402
from kstep.forces.tblite import QMConfig  # noqa: E402
from kstep.learning.learn_config import LearnConfig  # noqa: E402
from kstep.models import checkpoint as checkpoints  # noqa: E402
from kstep.models.model_config import ModelConfig  # noqa: E402
from kstep.models.network import Network  # noqa: E402
from kstep.molecules.prepare import prepare_molecule  # noqa: E402
from kstep.runs.loop import initial_state, run  # noqa: E402
from kstep.runs.network_dynamics import Carrier  # noqa: E402
from kstep.schemes import Impulse, Metropolis, Plain  # noqa: E402
from kstep.schemes.langevin import LangevinThermostat  # noqa: E402
from kstep.schemes.maxwell import draw_velocities  # noqa: E402
from kstep.schemes.state import State, kinetic_energy  # noqa: E402
from kstep.training.label_fit import fit  # noqa: E402
from kstep.training.labels import Labels  # noqa: E402
from kstep.units import PS_PER_FS  # noqa: E402
from physical_checks import Sample, check_pair, convergence, sigmas, suggested_interval_K  # noqa: E402
from running import RESULTS, ROOT, machine, provenance  # noqa: E402

RESULT = RESULTS / "validation.json"
REPLICAS, FRAMES = 250, 12
COLD_K, HOT_LABELS_K = 300.0, 450.0
FRICTION_PER_PS, SPACING_PS, BURN_IN_PS = 20.0, 0.12, 0.36
LABELS, FIT_PASSES = 250, 150.0
IMPULSE_K = 4
PROPOSAL = {"dt_fs": 1.5, "k_steps": 80, "hydrogen_mass_Da": 4.0}  # mean length 0.12 ps
PROPOSALS_PER_FRAME, PROPOSALS_BURN_IN = 8, 10
NVE_REPLICAS, NVE_PS = 6, 0.25
NVE_DT_FS = {"plain": (0.5, 0.25, 0.125), "impulse": (0.25, 0.125, 0.0625)}


class Copies:
    """The true forces of many replicas in one OpenMM context: that many copies of a molecule that ignore each other.

    A pool for schemes that use the true force alone; the energy of one copy is not known and reads NaN.
    """

    def __init__(self, system_xml: str, n_atoms: int, n_copies: int):
        import openmm

        single, many = read_system(system_xml, n_atoms), openmm.System()
        for atom in range(n_copies * n_atoms):
            many.addParticle(single.getParticleMass(atom % n_atoms))
        for force in single.getForces():
            term = next(t for t in ("Bond", "Angle", "Torsion") if hasattr(force, f"getNum{t}s"))
            clone = copy.deepcopy(force)
            for number in range(1, n_copies):
                for index in range(getattr(force, f"getNum{term}s")()):
                    parameters = getattr(force, f"get{term}Parameters")(index)
                    getattr(clone, f"add{term}")(*(_shifted(p, number * n_atoms) for p in parameters))
            many.addForce(clone)
        self.context, self.true_calls, self.failures = make_context(many, "Reference"), 0, []

    def evaluate(self, positions, rows=None) -> Truth:
        """Forces (R,N,3) at positions (R,N,3)."""
        self.true_calls += len(positions)
        self.context.setPositions(positions.reshape(-1, 3))
        forces = self.context.getState(getForces=True).getForces(asNumpy=True)._value
        return Truth(np.full(len(positions), np.nan), forces.reshape(positions.shape),
                     np.zeros(len(positions), dtype=bool))

    submit = evaluate

    def collect(self, truth: Truth) -> Truth:
        return truth


def _shifted(parameter, offset: int):
    """Atom indices of a copy; constants as they are."""
    if isinstance(parameter, int):
        return parameter + offset
    if isinstance(parameter, tuple) and parameter and all(isinstance(p, int) for p in parameter):
        return [p + offset for p in parameter]
    return parameter


class Bench:
    """Ethanol, its true potential, an imperfect network, and start geometries."""

    def __init__(self):
        import openmm

        prepared = prepare_molecule("ethanol", "CCO")
        self.molecule, self.xml = prepared.molecule, openmm.XmlSerializer.serialize(prepared.system)
        self.masses, self.numbers = self.molecule.masses, self.molecule.numbers
        self.mm = EvaluationPool(physics_spec(self.molecule, MDConfig(platform="Reference"), system_xml=self.xml))
        self.copies = Copies(self.xml, len(self.molecule), REPLICAS)
        conformers = self.molecule.conformers[np.arange(REPLICAS) % len(self.molecule.conformers)]
        self.hot = self._langevin(Plain(self.masses, 1e-3), conformers, HOT_LABELS_K, 600, 600,
                                  np.random.default_rng(0))[0]
        ours, theirs = (pool.evaluate(self.hot.positions).forces for pool in (self.copies, self.mm))
        apart = np.abs(ours - theirs).max()
        if not apart < 1e-6:
            raise SystemExit(f"copies of the molecule differ from the molecule by {apart:g} kJ/mol/nm")

    def _langevin(self, scheme, positions, temperature_K, n_macro, every, rng):
        """States each `every` macro-steps of a thermostatted run."""
        frames, start = [], draw_velocities(REPLICAS, self.masses, temperature_K, rng)
        truth = self.copies.evaluate(positions)
        run(scheme, self.copies, State(positions.copy(), start, truth.energy, truth.forces), rng, n_macro,
            thermostat=LangevinThermostat(temperature_K, FRICTION_PER_PS, self.masses),
            reporters=[lambda s, info: frames.append(s) if s.step % (every * scheme.k_steps) == 0 else None])
        return frames

    def network(self, pool, method: str) -> tuple[Network, dict]:
        """A pair_mlp of few labels of `pool`, and how wrong it is on others."""
        x = self.hot.positions
        truth = pool.evaluate(x)
        labels, rest = (Labels(x[s], truth.energy[s], truth.forces[s], HOT_LABELS_K)
                        for s in (slice(0, LABELS - 50), slice(LABELS - 50, None)))
        found = fit(ModelConfig(arch="pair_mlp", pair_hidden=[64, 64]), self.molecule, labels, LearnConfig(),
                    method=method,
                    true_calls=len(x), dt_fs=0.5, temperature_K=HOT_LABELS_K, seed=0, validation=rest,
                    passes=FIT_PASSES)
        path = ROOT / "outputs" / "validation" / f"{method}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoints.save(path, found.checkpoint)
        errors = {"labels": len(labels), "energy_error_kJ_per_mol": found.errors["energy_std_kJ_per_mol"],
                  "force_error_kJ_per_mol_A": 0.1 * found.errors["force_rmse_kJ_per_mol_nm"]}
        return Network.load(path, self.numbers, self.masses, self.molecule.bonds), errors

    def thermostatted(self, scheme, temperature_K: float, seed: int) -> Sample:
        """Independent frames of plain or impulse inside the thermostat; the true energies asked for afterwards."""
        every = round(SPACING_PS / (scheme.k_steps * scheme.dt_ps))
        burn_in = round(BURN_IN_PS / SPACING_PS)
        frames = self._langevin(scheme, self.hot.positions, temperature_K, every * (burn_in + FRAMES), every,
                                np.random.default_rng(seed))[burn_in:]
        energy = [self.mm.evaluate(f.positions).energy for f in frames]
        return self._sample(frames, energy, self.masses, temperature_K)

    def metropolis(self, network, pool, temperature_K: float, seed: int,
                   frames_wanted: int = FRAMES) -> tuple[Sample, dict]:
        """Frames of the exact sampler with heavy hydrogens; velocities are those the sampler keeps."""
        masses = np.where(self.numbers == 1, PROPOSAL["hydrogen_mass_Da"], self.masses)
        scheme = Metropolis(Carrier(network), masses, PROPOSAL["dt_fs"] * PS_PER_FS, PROPOSAL["k_steps"], temperature_K,
                            length_law="uniform")
        frames, accepted = [], []

        def record(state, info):
            accepted.append(info.accepted.mean())
            done = state.step // scheme.k_steps - PROPOSALS_BURN_IN
            if done > 0 and done % PROPOSALS_PER_FRAME == 0:
                frames.append(state)

        state = initial_state(pool, self.hot.positions, np.zeros_like(self.hot.positions))
        run(scheme, pool, state, np.random.default_rng(seed), PROPOSALS_BURN_IN + PROPOSALS_PER_FRAME * frames_wanted,
            reporters=[record])
        sample = self._sample(frames, [f.energy for f in frames], masses, temperature_K)
        return sample, {"acceptance": float(np.mean(accepted[PROPOSALS_BURN_IN:])), **PROPOSAL, "length_law": "uniform"}

    def _sample(self, frames, energy, masses, temperature_K) -> Sample:
        positions, velocities = (np.array([getattr(f, key) for f in frames]) for key in ("positions", "velocities"))
        return Sample(positions, velocities, np.array(energy), masses, self.numbers, temperature_K)

    def nve(self, name: str, network) -> dict:
        """Convergence of the energy fluctuation with the timestep, one figure per start."""
        rng = np.random.default_rng(5)
        x, v = self.hot.positions[:NVE_REPLICAS], draw_velocities(NVE_REPLICAS, self.masses, COLD_K, rng)
        totals = {}
        for dt_fs in NVE_DT_FS[name]:
            scheme = self.scheme(name, network, dt_fs)
            series: list[np.ndarray] = []
            run(scheme, self.mm, initial_state(self.mm, x, v), rng, round(NVE_PS / (scheme.k_steps * scheme.dt_ps)),
                reporters=[lambda s, _, kept=series: kept.append(
                    s.energy + kinetic_energy(s.velocities, self.masses))])
            totals[scheme.dt_ps] = np.array(series)
        each = [convergence({dt: t[:, r] for dt, t in totals.items()}) for r in range(NVE_REPLICAS)]
        return {"dt_fs": list(NVE_DT_FS[name]), "k_steps": 1 if name == "plain" else IMPULSE_K,
                "rms_kJ_per_mol": [float(t.std(axis=0).mean()) for t in totals.values()],
                "deviation_median": float(np.median(each)), "deviation_largest": float(max(each)),
                "starts": NVE_REPLICAS}

    def scheme(self, name: str, network, dt_fs: float):
        if name == "plain":
            return Plain(self.masses, dt_fs * PS_PER_FS)
        return Impulse(network, Carrier(network), self.masses, dt_fs * PS_PER_FS, IMPULSE_K)


def rows(bench: Bench, data: dict):
    """Each row's name and the function that measures it."""
    made = {}

    def network(pool, method):
        if method not in made:
            made[method] = bench.network(pool, method)
        return made[method]

    def hot_K() -> float:
        """The second temperature: physical_validation's rule on the first, to 5 K."""
        if "hot_K" not in data:
            cold, _ = bench.metropolis(network(bench.mm, "mmff94")[0], bench.mm, COLD_K, 1, frames_wanted=4)
            data["hot_K"] = COLD_K + 5.0 * round(suggested_interval_K(cold) / 5.0)
        return data["hot_K"]

    def pair(make) -> dict:
        return check_pair(*(make(t, seed) for seed, t in enumerate((COLD_K, hot_K()), 11)))

    def thermostatted(name, dt_fs):
        net, errors = (None, {}) if name == "plain" else network(bench.mm, "mmff94")
        return {"dt_fs": dt_fs, "k_steps": 1 if name == "plain" else IMPULSE_K, "true": "MMFF94", "network": errors,
                "friction_per_ps": FRICTION_PER_PS,
                **pair(lambda t, seed: bench.thermostatted(bench.scheme(name, net, dt_fs), t, seed))}

    def metropolis(pool, method):
        net, errors = network(pool, method)
        chains = []

        def make(t, seed):
            sample, chain = bench.metropolis(net, pool, t, seed)
            chains.append(chain)
            return sample

        return {"true": method.upper(), "network": errors, **pair(make), "chains": chains}

    def xtb():
        with EvaluationPool(physics_spec(bench.molecule, QMConfig(), warm_start=False)) as pool:
            return metropolis(pool, "gfn2-xtb")

    made_rows = {f"{name} {dt_fs:g} fs": (lambda name=name, dt_fs=dt_fs: thermostatted(name, dt_fs))
                 for name in ("plain", "impulse") for dt_fs in (0.5, 0.25)}
    made_rows |= {f"{name} NVE": (lambda name=name: bench.nve(name, None if name == "plain"
                                                              else network(bench.mm, "mmff94")[0]))
                  for name in ("plain", "impulse")}
    return {"metropolis": lambda: metropolis(bench.mm, "mmff94"), **made_rows, "metropolis xtb": xtb}


def worst(row: dict) -> str:
    """One line: the largest sigma of a row, or its convergence."""
    if "deviation_largest" in row:
        return f"energy fluctuation against dt^2: off by at most {row['deviation_largest']:.3f}"
    found = sigmas({key: row[key] for key in ("samples", "potential_sigma", "total_sigma")})
    path = max(found, key=found.get)
    return f"largest of {len(found)}: {found[path]:.2f} sigma ({path})"


def main():
    names = ["metropolis", "plain 0.5 fs", "impulse 0.5 fs", "plain NVE", "impulse NVE", "plain 0.25 fs",
             "impulse 0.25 fs", "metropolis xtb"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=names, default=names)
    args = parser.parse_args()
    data = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    data.setdefault("machine", machine())
    done = data.setdefault("rows", {})
    todo = [name for name in args.rows if name not in done]
    if todo:
        measure = rows(Bench(), data)
        for name in todo:
            start = time.process_time()
            done[name] = measure[name]() | {"cpu_s": 0.0, "git_commit": provenance()["git_commit"]}
            done[name]["cpu_s"] = time.process_time() - start
            write_json_compact(RESULT, data)
            print(f"{name}: {worst(done[name])}", flush=True)
    from tables import validation

    print(validation(data))


if __name__ == "__main__":
    main()
