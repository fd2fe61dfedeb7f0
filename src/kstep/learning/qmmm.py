"""Learning a QM/MM system's cheap potential from its own true calls: coupling and network, then frozen.

    bootstrap   short hot plain QM/MM dynamics from every start
    rounds      fit; propose with the cheap potential, judge with the truth; every answer is a label
    last fit    long, on all labels

What the QM itself says is divided in two: the coupling (learning/respond.py) takes what point charges
can say of QM and MM together, and the network learns the rest from the capped region alone:

    E_label = E_QM(x_capped; field) - E_coupling,   F_label likewise

Nothing of it counts as a sample; its true calls are on the network's bill.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kstep.config import load_config
from kstep.errors import UserError
from kstep.forces.pool import EvaluationPool
from kstep.forces.qmmm.coupling import Coupling
from kstep.learning.coupling_fit import fit_coupling
from kstep.learning.learn_config import LearnConfig
from kstep.molecules.molecule import Molecule
from kstep.runs.loop import initial_state, macro_steps, run
from kstep.runs.network_dynamics import Carrier
from kstep.runs.qmmm_network import EmbeddedNetwork
from kstep.schemes import Metropolis, Plain
from kstep.schemes.maxwell import draw_velocities
from kstep.schemes.state import State
from kstep.training.labels import Labels
from kstep.units import PS_PER_FS, kT

COOLING_ROUNDS = 3

log = logging.getLogger("kstep")


@dataclass(frozen=True)
class EmbeddedTask:
    """What is learned: spec of a QMMMPhysics and a MMPart `mm` of the same environment; capped: the region as a
    Molecule; starts (R,N,3) nm; masses (N,) Da of the sampler; length_fs of the last proposals."""

    spec: object
    mm: object
    capped: Molecule
    starts: np.ndarray
    masses: np.ndarray
    temperature_K: float
    dt_fs: float
    length_fs: float
    true_calls: int
    method: str
    folder: Path
    seed: int = 0


class Answers:
    """What the QM said, call by call: the raw material of coupling and labels."""

    def __init__(self, physics):
        self.physics, self.temperature_K = physics, 0.0
        self.sites, self.field, self.energies = [], [], []
        self.forces, self.field_forces, self.temperatures = [], [], []
        physics.on_answer = self.hear

    def hear(self, positions, answer) -> None:
        """Keep one true answer at positions (N,3) nm."""
        self.sites.append(self.physics.region.capped(positions))
        self.field.append(positions[self.physics.field_atoms])
        self.energies.append(answer.energy)
        self.forces.append(answer.forces)
        self.field_forces.append(answer.field_forces)
        self.temperatures.append(self.temperature_K)

    def __len__(self) -> int:
        return len(self.energies)

    def coupling(self) -> Coupling:
        """The point charges that say most of what the field does."""
        return fit_coupling(np.array(self.sites), np.array(self.field), self.physics.field_charges,
                            np.array(self.field_forces))

    def labels(self, coupling: Coupling) -> Labels:
        """What is left for the network."""
        sites = np.array(self.sites)
        energy, forces, _ = coupling.energy_and_forces(sites, np.array(self.field), self.physics.field_charges)
        return Labels(sites, np.array(self.energies) - energy, np.array(self.forces) - forces,
                      np.array(self.temperatures))


def learn_embedded(task: EmbeddedTask, model, config: LearnConfig) -> Path:
    """Learn within task.true_calls; returns the checkpoint <folder>/network.pt, which holds the coupling too."""
    if task.true_calls < 2 * len(task.capped) * config.bootstrap_labels_per_atom:
        raise UserError(f"{task.true_calls} true calls are too few to learn {len(task.capped)} atoms; give at least "
                        f"{round(2 * len(task.capped) * config.bootstrap_labels_per_atom)}")
    return _Learner(task, model, config).run()


class _Learner:
    def __init__(self, task: EmbeddedTask, model, config: LearnConfig):
        self.task, self.model, self.config = task, model, config
        self.rng = np.random.default_rng([task.seed, 4])
        self.path = task.folder / "network.pt"
        self.checkpoint, self.carry = None, None

    def run(self) -> Path:
        task, config = self.task, self.config
        task.folder.mkdir(parents=True, exist_ok=True)
        self.started = time.process_time()
        with EvaluationPool(task.spec, 1) as self.pool:
            self.answers = Answers(self.pool.local)
            state = self._bootstrap()
            temperature_K, length_fs = config.hot_temperature_K, min(config.first_length_fs, task.length_fs)
            while self.pool.true_calls < task.true_calls:
                self._fit(config.round_passes)
                state, acceptance = self._round(state, temperature_K, length_fs)
                if acceptance >= config.advance_acceptance:
                    step_K = (config.hot_temperature_K - task.temperature_K) / COOLING_ROUNDS
                    temperature_K = max(task.temperature_K, temperature_K - step_K)
                    length_fs = min(2.0 * length_fs, task.length_fs)
            self._fit(config.fit_passes)
        return self.path

    def _bootstrap(self) -> State:
        config, task = self.config, self.task
        self.answers.temperature_K = config.hot_temperature_K
        state = initial_state(self.pool, task.starts, np.zeros_like(task.starts))
        scheme = Plain(task.masses, config.bootstrap_dt_fs * PS_PER_FS)
        wanted = config.bootstrap_labels_per_atom * len(task.capped)
        while len(self.answers) < wanted:
            velocities = draw_velocities(len(task.starts), task.masses, config.hot_temperature_K, self.rng)
            state = State(state.positions, velocities, state.energy, state.forces)
            state = run(scheme, self.pool, state, self.rng, config.bootstrap_redraw_steps)
        return state

    def _fit(self, passes: float) -> None:
        from kstep.models import checkpoint as checkpoints
        from kstep.runs.run_network import load_network, network_arguments
        from kstep.training.fit import fit

        task = self.task
        coupling = self.answers.coupling()
        self.checkpoint = fit(
            self.model, task.capped, self.answers.labels(coupling), self.config, method=task.method,
            true_calls=self.pool.true_calls, dt_fs=task.dt_fs, temperature_K=task.temperature_K, seed=task.seed,
            start=self.checkpoint and self.checkpoint["state_dict"], passes=passes).checkpoint
        self.checkpoint.update(coupling=coupling.as_lists(), cpu_s_training=time.process_time() - self.started)
        checkpoints.save(self.path, self.checkpoint)
        network = load_network(**network_arguments(self.path, task.capped, task.method))
        self.inner = EmbeddedNetwork.around(network, self.pool.local, coupling, task.mm)
        self.carry = Carrier(self.inner)

    def _round(self, state: State, temperature_K: float, length_fs: float) -> tuple[State, float]:
        task = self.task
        self.answers.temperature_K = temperature_K
        left = task.true_calls - self.pool.true_calls
        n_steps = -(-min(left, round(self.config.round_growth * len(self.answers)) + 1) // state.n_replicas)
        scheme = Metropolis(self.carry, task.masses, task.dt_fs * PS_PER_FS, max(1, round(length_fs / task.dt_fs)),
                            temperature_K, length_law="uniform")
        accepted, errors = [], []

        def judge(proposal, truth):
            with np.errstate(all="ignore"):
                errors.append((truth.energy - self.inner.energy_and_forces(proposal.positions)[0]) / kT(temperature_K))

        for state, info in macro_steps(scheme, self.pool, state, self.rng, n_steps, observe=judge):
            accepted.append(info.accepted)
        errors = np.concatenate(errors)
        errors = errors[np.isfinite(errors)]
        spread = 0.5 * np.subtract(*np.percentile(errors, [84.13, 15.87])) if len(errors) else np.inf
        log.info("%d true calls: acceptance %.2f at %.0f K over %.0f fs, E_true - E_cheap spread %.2f kT",
                 self.pool.true_calls, np.mean(accepted), temperature_K, length_fs, spread)
        return state, float(np.mean(accepted))


def cheap_potential(args, spec, physics, capped: Molecule, starts, masses, qm, k_steps: int, device: str):
    """The Carrier of a run's metropolis and its price: from --checkpoint, or learned now beside --out.

    A checkpoint without a coupling (one of 06b, learned in vacuo) meets the force field's own charges.
    """
    from kstep.models import checkpoint as checkpoints
    from kstep.runs.run_network import load_network, network_arguments

    mm, path = physics.mm_part(), args.checkpoint
    folder = args.out.with_name(args.out.name + ".learn")
    if path is None and args.resume and (folder / "network.pt").is_file():
        if checkpoints.load(folder / "network.pt")["true_calls_training"] >= args.learn_calls:  # else cut on the way
            path = folder / "network.pt"
    if path is None:
        from kstep.models.model_config import ModelConfig

        task = EmbeddedTask(spec, mm, capped, starts, masses, qm.temperature_K, args.dt_fs, k_steps * args.dt_fs,
                            args.learn_calls, qm.method, folder, args.seed)
        path = learn_embedded(task, load_config(ModelConfig, args.model_config or "configs/model_pair_mlp.yaml"),
                              load_config(LearnConfig, args.learn_config))
    saved = checkpoints.load(path)
    if args.checkpoint and args.model_config:
        checkpoints.check_config(saved, path, args.model_config)
    network = load_network(**network_arguments(path, capped, qm.method, device))
    coupling = Coupling.from_lists(saved["coupling"]) if "coupling" in saved else physics.classical
    price = {"true_calls_training": int(saved["true_calls_training"]), "cpu_s_training": saved.get("cpu_s_training"),
             "checkpoint": str(path), "coupling": coupling.as_lists()}
    return Carrier(EmbeddedNetwork.around(network, physics, coupling, mm)), price
