"""Ladders of truth: learn at a cheap method, then only the difference to the next dearer one, and so on.

    learn            a network of the cheapest rung (learner.py), whose calls are milliseconds
    climb            for each dearer rung (climber.py): states of the network's own chains, a question to the dear truth
                     about each and a fit of the difference to all below (training/difference.py); again, until more
                     labels would cost more calls than they save in sampling
    learn again      a network of the cheapest rung plus all differences (corrected.py): no call but of the cheapest

Whatever a rung is worth, what is sampled afterwards is exact, since there the dear truth judges (Christen & Fox, J.
Comput. Graph. Stat. 14, 795 (2005)): a bad one only costs acceptance.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kstep.errors import UserError
from kstep.files import sha256
from kstep.fingerprint import as_written
from kstep.learning.climber import Climb, Climber, Rung
from kstep.learning.corrected import CorrectedLabels, CorrectedTarget, digest_of
from kstep.learning.ending import acceptance
from kstep.learning.learn_config import LearnConfig
from kstep.learning.target import Target
from kstep.molecules.molecule import Molecule
from kstep.training.difference import Difference
from kstep.training.labels import Labels

NETWORK, LABELS = "network.pt", "labels.npz"  # of a rung that was learned
GROWTH = 0.08  # of the labels of the cheapest rung in a round on the sum: it was learned, and only shifts
SHARED = ("charge", "multiplicity", "solvent")  # by all rungs; a force field has no electrons to say so of

log = logging.getLogger("kstep")


def check_rungs(rungs: Sequence[Rung]) -> None:
    """UserError where a ladder, the cheapest first and the truth last, is none."""
    top = rungs[-1]
    seen: set[str] = set()
    for rung in rungs:
        if rung.method in seen:
            raise UserError(f"{rung.method} stands twice in the ladder --via; name every method once, the cheapest "
                            "first, and the truth itself not")
        seen.add(rung.method)
        for key in SHARED:
            own, wanted = rung.spec.settings.get(key), top.spec.settings.get(key)
            if own != wanted and (key == "solvent" or None not in (own, wanted)):
                raise UserError(f"--via {rung.method} has {key} {own}, and {top.method} has {key} {wanted}; give all "
                                "rungs the same one")
    rungs[0].spec.require_forces("learning a network of it", "let the ladder --via begin with a method that has them")


def rung_folder(out: str | Path, number: int) -> Path:
    """The folder of the difference to rung `number` (1: the one above the cheapest) of a run into `out`."""
    return Path(f"{out}.via{number}")


def climb(target: Target, rungs: Sequence[Rung], base: Path, base_labels: Path, out: str | Path, model: Any,
          config: LearnConfig, *, taught: bool = False, seed: int = 0, n_workers: int = 1,
          resume: bool = False) -> Path:
    """The frozen network of the last of `rungs`, from one of the first: the checkpoint <out>.via<n>/network.pt.

    target: the molecule and its temperatures, with what the sampling will have, and what its starts cost where that is
    not in base; base: checkpoint of the first rung's network, base_labels: what it was fitted to.  The checkpoint's
    method is the last rung's; it says `rungs` (method, labels, true_calls and the spread in kT that is left, of each),
    true_calls_training of the last method alone, true_calls_training_by_method of all, and cpu_s_per_true_call.
    taught: the first rung's network stands for the last as it is, and no dearer method is asked; how far they are apart
    is then not known.  Files of a finished climb of the same settings are the result; UserError for others, and for an
    unfinished one without resume.
    """
    from kstep.learning.learner import learn
    from kstep.models import checkpoint as checkpoints

    check_base(target.labelled, rungs[0], base, base_labels)
    started = checkpoints.load(base)
    bottom = replace(target, spec=rungs[0].spec, method=rungs[0].method, call_cost_s=None)
    differences: tuple[Difference, ...] = ()
    climbs: list[Climb] = []
    for number, rung in enumerate([] if taught else rungs[1:], 1):
        climber = Climber(bottom, base, rung, differences, rung_folder(out, number), config, seed, n_workers)
        difference, climbed = climber.run(resume)
        differences, climbs = (*differences, difference), [*climbs, climbed]
    path = rung_folder(out, len(rungs) - 1) / NETWORK
    made_of = as_written({"base": sha256(base), "differences": digest_of(differences)})
    if path.is_file() and checkpoints.load(path).get("made_of") == made_of:
        return path
    top = rungs[-1]
    if taught:
        log.info("the network of %s, learned from %s alone, has asked it nothing; its acceptance is known when it "
                 "samples", top.method, rungs[0].method)
        checkpoints.save(path, {**started, **_untold(rungs, started, target.starts_spent), "method": top.method,
                                "made_of": made_of})
        return path
    fields = {name: getattr(bottom, name) for name in Target.__dataclass_fields__}
    total = CorrectedTarget(**{**fields, "method": f"{top.method} via {rungs[0].method}"}, differences=differences)
    gentle = config.model_copy(update={"round_growth": min(config.round_growth, GROWTH)})
    learned = checkpoints.load(learn(
        total, model, gentle, folder=rung_folder(out, len(climbs)) / "sum", seed=seed, n_workers=n_workers,
        resume=resume, earlier=CorrectedLabels(labels=base_labels, differences=differences)))
    checkpoints.save(path, {**learned, **_account(rungs, started, learned, climbs), "method": top.method,
                            "made_of": made_of})
    return path


def check_base(molecule: Molecule, rung: Rung, base: Path, base_labels: Path) -> None:
    """UserError where the network that a ladder begins with, or its labels, are of another molecule or method."""
    from kstep.models import checkpoint as checkpoints

    checkpoint = checkpoints.load(base)
    checkpoints.check_fits(checkpoint, base, molecule.numbers, molecule.bonds)
    _, metadata = Labels.load(base_labels, molecule)
    for path, method in ((base, checkpoint["method"]), (base_labels, metadata["method"])):
        if method != rung.method:
            raise UserError(f"{path} is of {method}, and the ladder --via begins with {rung.method}; give a network of "
                            "that and its labels, or leave both out to learn one")


def _untold(rungs: Sequence[Rung], started: dict, starts_spent: dict[str, float]) -> dict[str, Any]:
    """What the checkpoint of the last rung says where none but the first was asked."""
    calls = {rung.method: 0 for rung in rungs}
    calls[rungs[0].method] = int(started["true_calls_training"]) + int(starts_spent.get("true_calls", 0))
    seconds = {f"{key}_training": started[f"{key}_training"] + starts_spent.get(key, 0.0)
               for key in ("cpu_s", "wall_s") if started.get(f"{key}_training") is not None}
    return {**seconds, "true_calls_training": 0, "true_calls_training_by_method": calls,
            "rungs": [{"method": rungs[0].method, "true_calls": calls[rungs[0].method],
                       "spread_kT": float(started["d_spread_kT"])}],
            "d_spread_kT": None, "acceptance_expected": None, "cpu_s_per_true_call": None}


def _account(rungs: Sequence[Rung], started: dict, learned: dict, climbs: list[Climb]) -> dict[str, Any]:
    """What the checkpoint of the last rung says of the ladder."""
    calls = {rung.method: 0 for rung in rungs}
    calls[rungs[0].method] = int(learned["true_calls_training"])  # those of its first network are among them
    for climbed in climbs:
        for method, n in climbed.calls.items():
            calls[method] += n
    fitted = float(learned["d_spread_kT"])
    rows = [{"method": rungs[0].method, "true_calls": calls[rungs[0].method], "spread_kT": fitted}]
    rows += [{"method": rung.method, "labels": climbed.rounds[-1][0], "true_calls": calls[rung.method],
              "spread_kT": climbed.rounds[-1][1]} for rung, climbed in zip(rungs[1:], climbs)]
    spread = math.hypot(fitted, climbs[-1].rounds[-1][1])
    seconds = {key: sum(float(one.get(key) or 0.0) for one in (started, learned)) + sum(
        getattr(climbed, key.removesuffix("_training")) for climbed in climbs)
        for key in ("cpu_s_training", "wall_s_training")}
    log.info("%s via %s: E_true - E_network is expected to spread by %.2f kT (independent proposals: acceptance %.2f); "
             "true calls: %s", rungs[-1].method, ", ".join(rung.method for rung in rungs[:-1]), spread,
             acceptance(spread), ", ".join(f"{n} of {method}" for method, n in calls.items()))
    return {"true_calls_training": calls[rungs[-1].method], "true_calls_training_by_method": calls, "rungs": rows,
            "d_spread_kT": spread, "acceptance_expected": acceptance(spread),
            "cpu_s_per_true_call": climbs[-1].call_s, **seconds}
