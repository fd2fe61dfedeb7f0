"""--learn of 06 and 06b: learn a network first, then let the run go on with it."""

from __future__ import annotations

from pathlib import Path

from kstep.config import BaselineConfig, load_config
from kstep.errors import UserError
from kstep.files import check_writable
from kstep.forces.pool import physical_cores
from kstep.learning.learn_config import LearnConfig
from kstep.runs.settings import check_start
from kstep.schemes.hybrid_config import HybridConfig
from kstep.schemes.metropolis import check_sampler

DEFAULT_MODEL = "configs/model_pair_mlp.yaml"


def learn_first(args, molecule, spec, method: str, hybrid: HybridConfig, baseline: BaselineConfig,
                device: str) -> HybridConfig:
    """Learn into <out>.learn/, set args.checkpoint to the frozen network, and return how to sample with it.

    What the user leaves open of timestep and length is then tuned.  With --resume a finished
    learning is taken as it is.
    """
    if hybrid.scheme not in (None, "metropolis"):
        raise UserError(f"--learn makes a network for scheme metropolis, not for {hybrid.scheme}")
    if args.checkpoint:
        raise UserError("--learn starts from nothing; leave --checkpoint out, or run without --learn")
    check_start(args.initial_md, args.frame)
    check_sampler(hybrid)
    tune = hybrid.tune or None in (hybrid.dt_fs, hybrid.k_steps)
    hybrid = hybrid.model_copy(update={"scheme": "metropolis", "tune": tune})
    from kstep.learning.learn import Task, learn
    from kstep.models.model_config import ModelConfig

    config = load_config(LearnConfig, args.learn_config)
    model = load_config(ModelConfig, args.model_config or DEFAULT_MODEL)
    if model.arch != "pair_mlp":
        raise UserError(f"--learn fits arch pair_mlp, and the model config says {model.arch}; leave --model-config out")
    check_writable(args.out)
    temperatures_K = tuple(hybrid.tempering_K or (hybrid.temperature_K or baseline.temperature_K,))
    length_fs = hybrid.k_steps * (hybrid.dt_fs or baseline.dt_fs) if hybrid.k_steps else hybrid.shortest_mean_fs
    task = Task(molecule=molecule, spec=spec, method=method, temperatures_K=temperatures_K, length_fs=length_fs,
                folder=Path(f"{args.out}.learn"), seed=args.seed, n_workers=args.num_workers or physical_cores(),
                device=device)
    args.checkpoint = str(learn(task, model, config, resume=args.resume))
    return hybrid
