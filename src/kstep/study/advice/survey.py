"""Everything about one molecule on this machine that the advice is computed from, measured.

With a checkpoint   the run's own machinery: a short pilot of the sampler gives acceptance, samples and
                    CPU per true call, for one that explores the network's own moves give the slowest torsion's;
                    the network's dynamics gives plain MD's correlation times.
Without one         the true call and an untrained network of the configured size are timed; a classical
                    force field gives the motion; labels, training and acceptance are what cold starts took.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from kstep.analysis.measure.run_samples import samples_of_run
from kstep.analysis.measure.samples import FEWEST_FOR_A_RATE
from kstep.errors import UserError
from kstep.forces.local_pool import EvaluationPool
from kstep.provenance import machine, provenance
from kstep.runs.exploration import Explorer, with_rejections
from kstep.runs.network_dynamics import Carrier
from kstep.runs.run_hybrid import run_hybrid
from kstep.runs.run_network import recipe_of
from kstep.runs.sampler import sampler_masses
from kstep.runs.settings import HybridRun, start_positions
from kstep.runs.tuning import Costs, steps_per_call, thermalise, tune
from kstep.schemas import Trajectory, load_trajectory
from kstep.schemes import SCHEMES
from kstep.schemes.hybrid_config import HybridConfig
from kstep.schemes.ladder import TemperatureLadder
from kstep.stages.physics import TruePhysics
from kstep.study.advice import cost_model as model, ladder_rates, stand_in_rates as rates
from kstep.study.advice.stand_ins import ForceField, untrained_network
from kstep.study.advice.timing import plain_step_s, step_and_call_s
from kstep.units import PS_PER_FS

LENGTHS_FS = (100.0, 200.0, 400.0, 800.0)  # mean lengths of a proposal that are compared
MOST_REPLICAS = 32  # of dynamics without true calls
PROPOSALS = 60  # per replica, for each of them
SAMPLES_WITH_NETWORK, SAMPLES_WITHOUT = 300, 100  # of the slowest torsion, from the stand-in's plain dynamics


@dataclass(frozen=True)
class AdviceSettings:
    """hybrid: the sampler; checkpoint: its network, None before any training, when model_config is the network that
    would be trained; pilot: a run of the sampler with that checkpoint, None: one is made; samples: effective ones
    wanted; plain_dt_fs: timestep of plain MD; most_cpu_s: about the CPU seconds for plain dynamics, and for chains or
    moves, without true calls; checks: finished runs to hold the prediction against.
    """

    physics: TruePhysics
    hybrid: HybridConfig
    model_config: object
    checkpoint: Path | None = None
    pilot: Path | None = None
    samples: float = 10_000
    plain_dt_fs: float = 1.0
    most_cpu_s: float = 60.0
    checks: tuple[Path, ...] = ()
    n_workers: int | None = None
    device: str = "cpu"
    seed: int = 0


@dataclass(frozen=True)
class Survey:
    """numbers (N,): the molecule's; plain, sampler, learning, factor: see `cost_model`; lengths: one row per
    length of a proposal, or number of moves; facts: what was seen."""

    numbers: np.ndarray
    plain: model.PlainMD
    sampler: model.SamplerCost
    learning: model.Learning
    factor: dict[str, float]
    lengths: list[dict]
    facts: dict


def run_pilot(run: HybridRun) -> Trajectory:
    """A short tuned run of the sampler, in a folder that goes away."""
    with tempfile.TemporaryDirectory() as folder:
        pilot = replace(run, out=Path(folder) / "pilot.npz")
        run_hybrid(pilot, provenance(), machine())
        return load_trajectory(pilot.out)


def check_pilot(pilot: Trajectory, run: HybridRun, path) -> None:
    """Refuse a file that is no run of this sampler, molecule, method and temperature."""
    known = pilot.metadata
    if known.get("scheme") != run.hybrid.scheme or not known.get("cpu_production_s"):
        raise UserError(f"{path} is not a {run.hybrid.scheme} run of 06 or 06b, and a pilot must be one")
    if not np.array_equal(pilot.atom_types, run.molecule.numbers) or known.get("method") != run.method:
        raise UserError(f"{path} is a run of {known.get('molecule')} with {known.get('method')}, not of "
                        f"{run.molecule.name} with {run.method}")
    if abs(known["temperature_K"] - run.hybrid.temperature_K) > 0.5 or known["config"].get("tempering_K"):
        raise UserError(f"{path} was run at other temperatures than {run.hybrid.temperature_K:g} K")


def sampler_of(run: Trajectory) -> tuple[model.SamplerCost, dict]:
    """The SamplerCost that a finished run was, and its effective samples."""
    metadata, found = run.metadata, samples_of_run(run)
    calls, config = metadata["tally"]["macro_steps"], metadata.get("config") or {}
    return model.SamplerCost(
        cpu_s_per_call=metadata["cpu_production_s"] / calls,
        samples_per_call={o: found[o] and found[o] / calls for o in model.OBSERVABLES},
        acceptance=metadata["acceptance"], dt_fs=metadata["dt_fs"], k_steps=metadata["k_steps"],
        burn_in_cpu_s=metadata["cpu_burn_in_s"], moves=config.get("moves") or 1,
        ladder_K=tuple(config.get("network_ladder_K") or ())), found


def with_network(settings: AdviceSettings, run: HybridRun, pilot: Trajectory, rng) -> Survey:
    """The survey from a checkpoint and a pilot run of it."""
    molecule, recipe = run.molecule, recipe_of(run.molecule, run.method)
    network = recipe.load(checkpoint=run.checkpoint, device=run.device, **recipe.arguments)
    carry, masses = Carrier(network), pilot.masses_sampler
    # samples of the true potential: the network's own chain might find a hole of the network
    positions = pilot.pos[pilot.frames_of("train")[-min(run.hybrid.replicas, MOST_REPLICAS):]]
    sampler, found = sampler_of(pilot)
    costs = step_and_call_s(run, carry, carry, positions, masses, rng)
    factor, facts = model.WITH_PILOT, {}
    if run.traits.explores:
        hybrid = run.hybrid.model_copy(update=pilot.metadata["config"])
        explorer = Explorer(molecule, network, carry, masses, sampler.dt_fs * PS_PER_FS, rng,
                            **SCHEMES[hybrid.scheme].means(hybrid, molecule, network))
        trial, _ = explorer.trial(positions, sampler.ladder_K, max(1, round(sampler.k_steps / sampler.moves)),
                                  enough=SAMPLES_WITH_NETWORK, most_cpu_s=settings.most_cpu_s)
        sampler = ladder_rates.with_ladder(sampler, trial, found["energy"] >= FEWEST_FOR_A_RATE)
        lengths = ladder_rates.by_moves(sampler, trial, costs.true_call_s)
        factor, facts = model.WITH_LADDER, {"ladder": asdict(trial)}
    else:
        chains = _lengths(settings, run, network, carry, positions, masses, sampler.dt_fs, rng, sampler.k_steps)[0]
        lengths = _priced(chains, sampler, costs)
    own = _plain_dynamics(settings, run, network, carry, positions, rng, SAMPLES_WITH_NETWORK)
    step_s = plain_step_s(run.spec, positions[0], molecule.masses, settings.plain_dt_fs, run.hybrid.temperature_K, rng)
    labels = int(pilot.metadata.get("true_calls_training") or 0)
    # a network of 04_train.py does not say what its training took; its labels were steps of plain MD
    spent = pilot.metadata.get("cpu_s_training") or labels * step_s
    pilot_facts = {"true_calls": pilot.metadata["true_calls"], "cpu_s": pilot.metadata["cpu_s"],
                   "effective_samples": found}
    return _survey(settings, run, costs, own, step_s, lengths, sampler, model.Learning(labels, spent, paid=True),
                   factor, pilot=pilot_facts, **facts)


def without_network(settings: AdviceSettings, run: HybridRun, system_xml: str, rng) -> Survey:
    """The survey before anything is trained: priors, a force field for the motion, measured costs."""
    molecule, hybrid = run.molecule, run.hybrid
    temperature_K = hybrid.temperature_K
    field = ForceField(system_xml, len(molecule))
    masses = sampler_masses(molecule, hybrid.hydrogen_mass_Da)
    few = hybrid.model_copy(update={"replicas": min(hybrid.replicas, MOST_REPLICAS)})
    positions = start_positions(replace(run, hybrid=few))
    shaken = molecule.conformers[0] + 0.005 * rng.standard_normal((64, *molecule.conformers.shape[1:]))
    network = untrained_network(settings.model_config, molecule, shaken, temperature_K)
    ladder = TemperatureLadder((temperature_K,))
    positions = thermalise(field, field, positions, masses, ladder, rng)
    costs = step_and_call_s(run, Carrier(network), field, positions, masses, rng)
    step_s = plain_step_s(run.spec, positions[0], molecule.masses, settings.plain_dt_fs, temperature_K, rng)
    with EvaluationPool(run.spec, 1) as pool:  # its costs are the force field's; only dt is taken from it
        chosen = tune(field, field, pool, positions[:16], masses, ladder, rng, dt_fs=hybrid.dt_fs, k_steps=1,
                      use_hessian=False, wanted_acceptance=hybrid.integrator_acceptance,
                      shortest_mean_fs=hybrid.shortest_mean_fs)
    learning, facts = model.expected_learning(len(molecule), costs.true_call_s), {}
    if run.traits.explores:
        explorer = Explorer(molecule, field, field, masses, chosen["dt_fs"] * PS_PER_FS, rng,
                            **SCHEMES[hybrid.scheme].means(hybrid, molecule, field))
        sampler, trial = ladder_rates.foretold(run, explorer, positions, costs, settings.most_cpu_s)
        lengths = ladder_rates.by_moves(sampler, trial, costs.true_call_s)
        facts = {"ladder": asdict(trial)}
    else:
        sampler, lengths, positions = _one_trajectory(settings, run, field, positions, masses, chosen["dt_fs"], costs,
                                                      rng)
    own = _plain_dynamics(settings, run, field, field, positions[:16], rng, SAMPLES_WITHOUT)
    return _survey(settings, run, costs, own, step_s, lengths, sampler, learning, model.WITHOUT, **facts)


def _one_trajectory(settings: AdviceSettings, run: HybridRun, field: ForceField, positions, masses, dt_fs: float,
                    costs: Costs, rng) -> tuple[model.SamplerCost, list[dict], np.ndarray]:
    """A sampler whose proposal is one trajectory, as a force field moves; its lengths; last positions (R,N,3)."""
    hybrid = run.hybrid
    k_steps = hybrid.k_steps or steps_per_call(costs, dt_fs, hybrid.shortest_mean_fs)
    lengths, positions = _lengths(settings, run, field, field, positions, masses, dt_fs, rng, k_steps)
    here = next(row for row in lengths if row["k_steps"] == k_steps)
    # a stand-in rejects for integration errors alone; a network that has learned rejects this much
    share = min(1.0, model.ACCEPTANCE_AFTER_LEARNING / max(here["acceptance"], 1e-3))
    burn_in = SCHEMES[hybrid.scheme].default_burn_in if hybrid.burn_in_steps is None else hybrid.burn_in_steps
    sampler = model.SamplerCost(
        costs.true_call_s + k_steps * costs.inner_step_s,
        {o: here[o] and with_rejections(here[o], share) for o in model.OBSERVABLES}, share * here["acceptance"],
        dt_fs, k_steps, burn_in * hybrid.replicas * k_steps * costs.inner_step_s)
    return sampler, _priced(lengths, sampler, costs), positions


def _plain_dynamics(settings: AdviceSettings, run: HybridRun, network, carry, positions, rng, enough: float) -> dict:
    """How fast the stand-in's plain dynamics forgets, see stand_in_rates."""
    return rates.stand_in_dynamics(run.molecule, network, carry, positions, run.hybrid.temperature_K,
                                   settings.plain_dt_fs, settings.physics.config.redraw_interval_ps, rng,
                                   enough=enough, most_cpu_s=settings.most_cpu_s)


def _survey(settings: AdviceSettings, run: HybridRun, costs: Costs, own: dict, step_s: float, lengths: list[dict],
            sampler: model.SamplerCost, learning: model.Learning, factor: dict[str, float], **facts) -> Survey:
    """The survey of what was measured."""
    facts |= {"plain_dynamics": own, "cpu_s_per_true_call": costs.true_call_s,
              "cpu_s_per_inner_step": costs.inner_step_s}
    plain = model.PlainMD(step_s, settings.plain_dt_fs, {o: own[o] for o in model.OBSERVABLES})
    return Survey(run.molecule.numbers, plain, sampler, learning, factor, lengths, facts)


def _lengths(settings: AdviceSettings, run: HybridRun, network, carry, positions, masses, dt_fs, rng, k_steps):
    """The stand-in's own chain at k_steps, then at other lengths while the time lasts; rows, last positions (R,N,3)."""
    hybrid, rows, clock = run.hybrid, [], time.process_time()
    others = [max(1, round(fs / dt_fs)) for fs in LENGTHS_FS]
    last = positions
    for k in [k_steps, *(k for k in others if not 0.8 < k / k_steps < 1.25)]:
        if rows and time.process_time() - clock > settings.most_cpu_s:
            break
        found, reached = rates.stand_in_chain(
            run.molecule, network, carry, positions, masses, hybrid.temperature_K, dt_fs, k, rng,
            length_law=hybrid.length_law, n_proposals=PROPOSALS)
        last = last if rows else reached
        rows.append({"k_steps": k, "dt_fs": dt_fs, "mean_length_fs": k * dt_fs, **found})
    return sorted(rows, key=lambda row: row["k_steps"]), last


def _priced(lengths: list[dict], sampler: model.SamplerCost, costs: Costs) -> list[dict]:
    """Rows of `_lengths` with what a sample costs at each of them."""
    here = next(row for row in lengths if row["k_steps"] == sampler.k_steps)
    return [_price(row, here, sampler, costs) for row in lengths]


def _price(row: dict, here: dict, sampler: model.SamplerCost, costs: Costs) -> dict:
    """CPU seconds per effective sample at another length, from those of the sampler at `here`.

    Rates are the stand-in's, with rejections at random, times the sampler's / the same formula at `here`; the
    cost of a call changes by its timesteps.
    """
    share = min(1.0, sampler.acceptance / max(here["acceptance"], 1e-3))
    cost = sampler.cpu_s_per_call + (row["k_steps"] - here["k_steps"]) * costs.inner_step_s
    out = {"k_steps": row["k_steps"], "mean_length_fs": row["mean_length_fs"], "cpu_s_per_call": cost}
    for o in model.OBSERVABLES:
        rate, known = None, sampler.samples_per_call[o]
        if row[o] and here[o] and known:
            rate = with_rejections(row[o], share) * known / with_rejections(here[o], share)
        out[f"{o}_samples_per_call"], out[f"cpu_s_per_{o}_sample"] = rate, rate and cost / rate
    return out


def about_lengths(survey: Survey) -> str:
    """Which lengths of a proposal, or numbers of moves, pay, in one sentence."""
    o = "torsion" if any(row["torsion_samples_per_call"] for row in survey.lengths) else "energy"
    rows = [row for row in survey.lengths if row[f"cpu_s_per_{o}_sample"]]
    if not rows:
        return "No length of a proposal gave samples to compare."
    best = min(rows, key=lambda row: row[f"cpu_s_per_{o}_sample"])
    key, name = ("moves", "moves per true call") if "moves" in best else ("k_steps", "length")
    each = ", ".join(f"{_said(key, row)} ({row['mean_length_fs']:.0f} fs) "
                     f"{model.seconds(row[f'cpu_s_per_{o}_sample'])}" for row in rows)
    return f"CPU per effective {o} sample by {name}: {each}; {_said(key, best)} is the cheapest."


def _said(key: str, row: dict) -> str:
    return f"k = {row[key]}" if key == "k_steps" else str(row[key])
