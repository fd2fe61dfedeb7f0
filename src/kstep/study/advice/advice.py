"""The advice for one molecule: what is asked, what was measured and predicted, and how it is said."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from kstep.errors import UserError
from kstep.provenance import machine, provenance
from kstep.runs.settings import HybridRun, settle_settings
from kstep.schemas import load_trajectory
from kstep.schemes import CONTROL, SAMPLERS, SCHEMES
from kstep.schemes.hybrid_config import preferred, refuse_keys_of_others
from kstep.schemes.sampler import TUNED_HYDROGEN_DA
from kstep.stages.physics import TruePhysics
from kstep.study.advice import check, cost_model as model, survey
from kstep.study.advice.survey import AdviceSettings

log = logging.getLogger("kstep")


@dataclass(frozen=True)
class Advice:
    """run: what would be run; seen: what was measured; forecast: by observable (see model.predict); checks: see
    check.against.
    """

    settings: AdviceSettings
    run: HybridRun
    seen: survey.Survey
    forecast: dict[str, dict]
    checks: list[dict]
    cpu_s_per_ps: dict[str, float]

    def as_dict(self) -> dict:
        """Everything, for a JSON file."""
        seen, run = self.seen, self.run
        return {"molecule": run.molecule.name, "method": run.method, "num_workers": run.n_workers,
                "samples": self.settings.samples, "machine": machine(), **provenance(),
                CONTROL.name: asdict(seen.plain), "sampler": asdict(seen.sampler), "learning": asdict(seen.learning),
                "factor": seen.factor, "lengths": seen.lengths, "facts": seen.facts, "cpu_s_per_ps": self.cpu_s_per_ps,
                "forecast": self.forecast, "checks": self.checks}

    def sentences(self) -> list[str]:
        """What a user is told: costs, the sampler, the table of totals, and how far to trust it."""
        seen, run = self.seen, self.run
        plain, sampler, learning = seen.plain, seen.sampler, seen.learning
        call_s, inner_s = seen.facts["cpu_s_per_true_call"], seen.facts["cpu_s_per_inner_step"]
        said = [f"{run.molecule.name}, {run.method}, {run.n_workers} cores: a true call costs "
                f"{model.seconds(call_s)}, a step of plain MD {model.seconds(plain.cpu_s_per_step)}, a timestep of the "
                f"network {model.seconds(inner_s)} per replica.",
                f"Scheme for sampling: {run.hybrid.scheme}, {sampler.in_words}, acceptance {sampler.acceptance:.2f}. "
                f"The network {'took' if learning.paid else 'should take'} {learning.true_calls} true calls and "
                f"{model.seconds(learning.cpu_s)} of CPU.",
                survey.about_lengths(seen), model.table(self.forecast, plain, learning)]
        said += [model.explain("slowest torsion" if o == "torsion" else "potential energy", row, seen.factor[o])
                 for o, row in self.forecast.items()]
        said.append(f"For spectra and rates, which {run.hybrid.scheme} does not give, a ps of one replica costs "
                    + ", ".join(f"{scheme} {model.seconds(s)}" for scheme, s in self.cpu_s_per_ps.items()) + " of CPU.")
        if never := seen.facts["plain_dynamics"]["never_crossed"]:
            said.append(f"Not crossed by plain dynamics here, so left out: {', '.join(never)}; consider --tempering in "
                        "06b.")
        said.append("These figures are meant to hold within " + (
            "30 %." if seen.factor == model.WITH_PILOT else
            "30 %; a torsion's within a factor of 2, since the network's own moves tell how slow it is."
            if learning.paid else
            "a factor of 2; a torsion's within 10, since they rest on a force field's barriers (learn, then ask again "
            "with --checkpoint)."))
        return said + ["check, " + check.say(done) for done in self.checks]


def advise(settings: AdviceSettings) -> Advice:
    """Measure what one molecule costs here, and predict both bills."""
    would_run = _run(settings)
    finished = [(path, load_trajectory(path)) for path in settings.checks]
    seen = _survey(settings, would_run)
    forecast = {o: model.predict(settings.samples, o, seen.plain, seen.sampler, seen.learning, would_run.n_workers,
                                 seen.factor[o]) for o in model.OBSERVABLES}
    per_ps = model.cpu_s_per_ps(seen.plain, seen.facts["cpu_s_per_true_call"], seen.facts["cpu_s_per_inner_step"])
    if "pilot" in seen.facts:
        log.info("pilot: %d true calls, %s of CPU", seen.facts["pilot"]["true_calls"],
                 model.seconds(seen.facts["pilot"]["cpu_s"]))
    return Advice(settings, would_run, seen, {o: row for o, row in forecast.items() if row is not None},
                  [check.against(seen, run, settings.samples, path) for path, run in finished], per_ps)


def _run(settings: AdviceSettings) -> HybridRun:
    """What would be run."""
    physics, hybrid, baseline = settings.physics, settings.hybrid, settings.physics.config
    kind = SCHEMES[hybrid.scheme] if hybrid.scheme else preferred(hybrid, SAMPLERS)
    if kind not in SAMPLERS:
        raise UserError(f"the advice is about exact samplers ({', '.join(each.name for each in SAMPLERS)}), not about "
                        f"{kind.name}; name one of them as scheme")
    hybrid = hybrid.model_copy(update={"scheme": kind.name, "replicas": hybrid.replicas or kind.default_replicas})
    if settings.checkpoint:
        from kstep.models import checkpoint as checkpoints

        hybrid = settle_settings(hybrid, checkpoints.load(settings.checkpoint), baseline)
    else:
        refuse_keys_of_others(hybrid, kind.name)
        hybrid = hybrid.model_copy(update={
            "temperature_K": hybrid.temperature_K or baseline.temperature_K,
            "hydrogen_mass_Da": hybrid.hydrogen_mass_Da or TUNED_HYDROGEN_DA})
    spec = physics.spec()
    spec.require_forces("plain MD, with which the advice compares,", "ask about a cheaper method")
    return HybridRun(physics.molecule, spec, physics.method, hybrid, settings.checkpoint, Path("pilot.npz"),
                     settings.seed, physics.workers(settings.n_workers), settings.device)


def _force_field(physics: TruePhysics) -> str:
    """The System, as XML, that tells how fast a molecule moves before there is a network."""
    if physics.folder is None and physics.system_xml is not None:
        return physics.system_xml
    system = None if physics.folder is None else physics.folder / "system.xml"
    if system is None or not system.is_file():
        lacks = f"{system} does not exist" if system is not None else f"MMFF94 does not know {physics.molecule.name}"
        raise UserError(f"{lacks}, and without a force field or --checkpoint nothing here tells how fast the molecule "
                        "moves; prepare it with 00_prep_mols.py and a --force-field that knows it")
    return system.read_text()


def _survey(settings: AdviceSettings, run: HybridRun) -> survey.Survey:
    """The survey, with or without a network."""
    rng = np.random.default_rng([settings.seed, 8])
    if not settings.checkpoint:
        if settings.pilot:
            raise UserError("--pilot needs --checkpoint, the network that the pilot run used")
        return survey.without_network(settings, run, _force_field(settings.physics), rng)
    if settings.pilot:
        pilot = load_trajectory(settings.pilot)
        survey.check_pilot(pilot, run, settings.pilot)
    else:
        pilot = survey.run_pilot(run)
    return survey.with_network(settings, run, pilot, rng)
