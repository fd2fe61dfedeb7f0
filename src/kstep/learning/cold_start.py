"""A cold start: the network of a run is learned first, from true calls alone, and the run goes on with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kstep.config import BaselineConfig, load_config
from kstep.errors import UserError
from kstep.files import check_writable
from kstep.learning.learn_config import LearnConfig
from kstep.learning.target import Target
from kstep.runs.aim import settle_end
from kstep.schemes import PREFERRED, SCHEMES
from kstep.schemes.hybrid_config import HybridConfig, preferred, refuse_keys_of_others
from kstep.schemes.sampler import Sampler

DEFAULT_MODEL = "configs/model_pair_mlp.yaml"


def settle_cold_start(hybrid: HybridConfig, baseline: BaselineConfig) -> HybridConfig:
    """How to sample with a network that is yet to be learned: what is open of timestep and length is tuned."""
    samplers = [kind for kind in PREFERRED if issubclass(kind, Sampler)]
    if hybrid.scheme is None:
        kind = preferred(hybrid, samplers)
    elif SCHEMES[hybrid.scheme] in samplers:
        kind = SCHEMES[hybrid.scheme]
    else:
        raise UserError(f"--learn makes a network for {' or '.join(each.name for each in samplers)}, not for "
                        f"{hybrid.scheme}")
    tune = True if hybrid.tune is None and None in (hybrid.dt_fs, hybrid.k_steps) else hybrid.tune
    settled = hybrid.model_copy(update={"scheme": kind.name, "tune": tune})
    refuse_keys_of_others(settled, kind.name)  # what contradicts itself is refused before anything is learned
    kind.settle_defaults(settled, None, baseline)
    settle_end(settled, kind)
    return settled


def temperatures_of(hybrid: HybridConfig, baseline: BaselineConfig) -> tuple[float, ...]:
    """Temperatures in K that a run will sample at, the target first: the rungs of a ladder, or one alone."""
    return tuple(hybrid.tempering_K or hybrid.network_ladder_K or (hybrid.temperature_K or baseline.temperature_K,))


def explored_with(hybrid: HybridConfig) -> dict[str, Any]:
    """Fields of a Target: what a run will have besides moves, and what its true calls are said to cost."""
    return {"walls": hybrid.keep_species, "mirror": hybrid.mirror_images, "turns": hybrid.turns,
            "call_cost_s": hybrid.call_cost_s}


def length_fs_of(hybrid: HybridConfig, baseline: BaselineConfig) -> float:
    """Mean length of the proposals that a run will make, as far as it is settled."""
    return hybrid.k_steps * (hybrid.dt_fs or baseline.dt_fs) if hybrid.k_steps else hybrid.shortest_mean_fs


def learn_for(target: Target, out: str | Path, config: LearnConfig, *, model_config=None, **how) -> Path:
    """Learn into <out>.learn/; returns the frozen network.

    model_config: a ModelConfig, or the YAML of one (None: that of a pair_mlp); how: as of `learner.learn`.
    """
    from kstep.learning.learner import learn

    model = model_to_learn(model_config)
    check_writable(out)
    return learn(target, model, config, folder=learned_at(out), **how)


def model_to_learn(model_config):
    """The ModelConfig of a network that labels are fitted with: one, or the YAML of one (None: that of a pair_mlp)."""
    from kstep.models import names_of
    from kstep.models.model_config import ModelConfig

    model = model_config if isinstance(model_config, ModelConfig) else load_config(ModelConfig, model_config
                                                                                   or DEFAULT_MODEL)
    if not model.network_class.fits_labels:
        raise UserError(f"--learn fits arch {names_of('fits_labels')}, and the model config says {model.arch}; leave "
                        "--model-config out")
    return model


def learned_at(out: str | Path) -> Path:
    """The folder that the network of a run into `out` is learned in."""
    return Path(f"{out}.learn")
