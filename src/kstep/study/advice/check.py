"""A forecast held against what then really happened: the same totals, from a finished run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from kstep.analysis.measure.run_samples import samples_of_run
from kstep.errors import UserError
from kstep.schemas import Trajectory
from kstep.scheme_traits import traits_of
from kstep.study.advice import cost_model as model
from kstep.study.advice.survey import Survey, sampler_of


def against(survey: Survey, run: Trajectory, n_samples: float, path) -> dict:
    """Predicted and measured CPU seconds of n_samples, per observable, with their ratio.

    The measured figure is the run's CPU per effective sample times n_samples, plus its burn-in; and, where
    nothing was trained yet when the forecast was made, the learning of the run's network where
    the file knows it.  A plain run is held against the forecast for plain MD.
    """
    scheme, traits = run.metadata.get("scheme"), traits_of(run.metadata)
    if traits.needs_network and not traits.can_refuse:
        raise UserError(f"{path} is a run of scheme '{scheme}'; a forecast can be checked against a sampler or plain "
                        "MD")
    if not np.array_equal(run.atom_types, survey.numbers):
        raise UserError(f"{path} is a run of {run.metadata.get('molecule')}, another molecule than the forecast's")
    learned = None
    if traits.needs_network:
        predicted, (measured, found) = survey.sampler, sampler_of(run)
        keys, learned = ("acceptance", "cpu_s_per_call", "in_words"), run.metadata.get("cpu_s_training")
    else:
        found, dt_fs = samples_of_run(run), run.metadata["dt_fs"]
        predicted = replace(survey.plain, dt_fs=dt_fs)  # a forecast in ps holds at any timestep
        measured = model.PlainMD(run.metadata["cpu_s"] / run.metadata["true_calls"], dt_fs,
                                 {o: found[o] and found["ps"] / found[o] for o in model.OBSERVABLES})
        keys = ("cpu_s_per_step", "ps_per_sample")
    out = {"run": str(path), "scheme": scheme, "effective_samples": found,
           **{key: {"predicted": getattr(predicted, key), "measured": getattr(measured, key)} for key in keys}}
    for o in model.OBSERVABLES:
        if not found[o]:
            continue
        forecast, truth = (model.cpu_s(by, n_samples, o) for by in (predicted, measured))
        if forecast and learned and not survey.learning.paid:
            truth, forecast = truth + learned, forecast + survey.learning.cpu_s
        out[o] = {"predicted_cpu_s": forecast, "measured_cpu_s": truth,
                  "predicted_over_measured": forecast and forecast / truth}
    if learned:
        out["learning"] = {"true_calls": {"predicted": survey.learning.true_calls,
                                          "measured": int(run.metadata["true_calls_training"])},
                           "cpu_s": {"predicted": survey.learning.cpu_s, "measured": learned}}
    return out


def say(check: dict) -> str:
    """One line about a check."""
    parts = [f"{o}: predicted {model.seconds(check[o]['predicted_cpu_s'])}, measured "
             f"{model.seconds(check[o]['measured_cpu_s'])} ({check[o]['predicted_over_measured']:.2f})"
             for o in model.OBSERVABLES if check.get(o) and check[o]["predicted_over_measured"]]
    settings = check.get("in_words")
    if settings and settings["predicted"] != settings["measured"]:  # each run is tuned anew
        parts.append(f"it ran with {settings['measured']}")
    return f"{check['run']} ({check['scheme']}): " + ("; ".join(parts) or "nothing to compare")
