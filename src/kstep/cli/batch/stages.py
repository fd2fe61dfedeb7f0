"""The stages of a batch, one class each: what it asks of its user, which tasks it has, and how one is made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from kstep.cli.batch.settings import CONFIG, FILE, PATH, SWITCH, WHOLE, WHOLES, choice, setting
from kstep.cli.batch.stage import Command, Stage
from kstep.config import load_config
from kstep.errors import UserError
from kstep.files import is_kept
from kstep.forces import load_qm_config
from kstep.runs.aim import ENDS
from kstep.schemes import CONTROL, PREFERRED, SAMPLERS, SCHEMES
from kstep.schemes.hybrid_config import HybridConfig
from kstep.study import batch as judging
from kstep.study.batch import PLAIN, Found, HybridWanted, found

ALL, MOLECULE = "all", "{molecule}"
LONGEST_PLAIN_FS = 2.0  # beyond which plain MD breaks
# without a network of its own a molecule jumps; with one, a proposal is k steps of its dynamics
JUMPS = next(kind.name for kind in PREFERRED if kind.traits.jumps)
PROPOSES = next(kind.name for kind in SAMPLERS if not kind.traits.explores)
DEVICE = choice("auto", "cpu", "cuda")
SHORT_OF_AIM, BROKE = 4, 3  # exit codes of a run, which has left its file


@dataclass
class Baseline(Stage):
    """Plain QM MD of every molecule: OUT_DIR/md/<molecule>/trajectory.npz."""

    script = "run_qm_trajectories"
    qm_config: Path = setting(CONFIG, "configs/qm.yaml", "YAML of method, timestep and lengths; DFT: "
                              "configs/qm_pyscf.yaml")

    def __post_init__(self) -> None:
        load_qm_config(self.qm_config)

    def commands(self, task: str) -> list[Command]:
        """Prepared by itself, but for a structure."""
        own = self.sources[task].structure is not None
        which = [str(self.at("raw", task))] if own else ["--smiles-file", str(self.smiles_file), "--molecule", task,
                                                         "--raw", str(self.at("raw"))]
        run = Command(["baseline", *which, "--config", str(self.qm_config), "--out", str(self.at("md")),
                    "--num-workers", str(self.threads_per_job), "--resume"],
                   (self.at("md", task, "trajectory.npz"),),
                   partial(judging.judge_trajectory, qm_config=self.qm_config))
        return [self.preparing(task), run] if own else [run]


@dataclass
class Dataset(Stage):
    """Windows of k timesteps from the trajectories: OUT_DIR/datasets/all/dataset_k<k>.npz and its splits.

    It is made again when a trajectory is new.
    """

    script = "make_qm_dataset"
    k_steps: tuple[int, ...] = setting(WHOLES, "8", "timesteps per window, one dataset each")
    split_by: str = setting(choice("time", "molecule"), "time", "time: the network is shown the start of every "
                            "molecule's trajectory, and validated on its end; molecule: it is validated on molecules "
                            "it was never shown")
    per_molecule: bool = setting(SWITCH, "0", "1: a dataset for each molecule, OUT_DIR/datasets/<molecule>/")

    def __post_init__(self) -> None:
        if self.per_molecule and self.split_by == "molecule":
            raise UserError("SPLIT_BY=molecule needs several molecules; use PER_MOLECULE=0")

    def tasks(self) -> tuple[list[str], dict[str, str]]:
        """Those whose trajectory is whole, or all of these together."""
        without = {}
        for name in [] if self.dry_run else list(self.sources):
            path = self.at("md", name, "trajectory.npz")
            kind, text = found([path], judging.judge_trajectory)
            if kind is not Found.DONE:
                without[name] = text or f"{path} is not there"
                del self.sources[name]
        if self.per_molecule:
            return list(self.sources), without
        return [ALL] if self.sources else [], without

    def commands(self, task: str) -> list[Command]:
        """One for all k."""
        members = [task] if self.per_molecule else list(self.sources)
        home, md = self.at("datasets", task), self.at("md")
        outs = tuple(home / f"dataset_k{k}.npz" for k in self.k_steps)
        words = ["dataset", "--md-root", str(md), "--out-root", str(home), "--splits-dir", str(home / "splits"),
                 "--ks", *map(str, self.k_steps), "--split-by", self.split_by]
        words += [word for name in members for word in ("--molecule", name)]
        if any(out.exists() for out in outs):
            words.append("--overwrite")  # of older trajectories; it is kept under another name
        return [Command(words, outs, partial(judging.judge_dataset, members=members, md_root=md,
                                          split_by=self.split_by))]


@dataclass
class Train(Stage):
    """One network over all molecules of the dataset: OUT_DIR/networks/all/best.pt."""

    script = "train_qm"
    k_steps: tuple[int, ...] = setting(WHOLES, "8", "the dataset to learn from is the one of k timesteps, the largest "
                                       "if several")
    per_molecule: bool = setting(SWITCH, "0", "1: a network for each molecule, OUT_DIR/networks/<molecule>/")
    model_config: Path = setting(CONFIG, None, "YAML of the network", "configs/model.yaml, which jumps; with "
                                 "PER_MOLECULE=1 configs/model_pair_mlp.yaml, an energy")
    train_config: Path = setting(CONFIG, None, "YAML of the training", "configs/train.yaml, with CHECKPOINT "
                                 "configs/train_qm.yaml; with PER_MOLECULE=1 configs/train_pair_mlp.yaml")
    device: str = setting(DEVICE, "auto", "where it is trained")
    checkpoint: Path | None = setting(FILE, None, "network whose weights to start from, e.g. one of xTB for a DFT one")

    def __post_init__(self) -> None:
        kind = "_pair_mlp" if self.per_molecule else ""
        fine = "_qm" if self.checkpoint is not None and not self.per_molecule else kind
        self.model_config = self.model_config or Path(f"configs/model{kind}.yaml")
        self.train_config = self.train_config or Path(f"configs/train{fine}.yaml")
        if not self.per_molecule:
            self.made_before(self._data(ALL), Dataset.script)

    def _data(self, task: str) -> Path:
        return self.at("datasets", task, f"dataset_k{max(self.k_steps)}.npz")

    def tasks(self) -> tuple[list[str], dict[str, str]]:
        """Every molecule, or all together."""
        return list(self.sources) if self.per_molecule else [ALL], {}

    def commands(self, task: str) -> list[Command]:
        """A training that was cut short goes on."""
        data, out = self._data(task), self.at("networks", task)
        start = []
        if is_kept(out / "last.pt") and not (out / "training.json").exists():
            start = ["--resume"]
        elif self.checkpoint is not None:
            start = ["--pretrained", str(self.checkpoint)]
        splits = [str(data.parent / "splits" / f"{part}.json") for part in ("train", "val")]
        return [Command(["train", str(data), "--model-config", str(self.model_config),
                      "--train-config", str(self.train_config), "--splits", *splits,
                      "--set", f"threads={self.threads_per_job}", "--device", self.device, "--out-dir", str(out),
                      *start],
                     (out / "best.pt",),
                     partial(judging.judge_network, dataset=data, model_config=self.model_config))]


@dataclass
class Sample(Stage):
    """A hybrid run of every molecule, and its controls at the same number of true calls beside it.

    OUT_DIR/hybrid/<molecule>/{<scheme>_k<k>,<scheme>_k<k>_bare,plain,plain_<dt>fs}.npz.
    """

    script = "run_hybrid_qm"
    per_molecule: bool = setting(SWITCH, "0", "1: take the network of each molecule")
    learn: bool = setting(SWITCH, "0", "1: each run first learns its own network, no CHECKPOINT and no trajectory")
    scheme: str = setting(choice(*SCHEMES), None, "how k steps are made", f"{JUMPS}; with PER_MOLECULE=1 or LEARN=1 "
                          f"{PROPOSES}")
    k_steps: tuple[int, ...] = setting(WHOLES, None, "timesteps per true call, one run for each number", "1000 for "
                                       f"{' and '.join(kind.name for kind in SAMPLERS)}, else 8")
    steps: int | None = setting(WHOLE, None, "true calls per replica", "what HYBRID_CONFIG says of length or aim, else "
                                "200, so that the controls are as long as the runs")
    checkpoint: Path | None = setting(PATH, None, "network; {molecule} in it stands for the name", "the one that "
                                      "train_qm.sh wrote")
    qm_config: Path = setting(CONFIG, "configs/qm.yaml", "YAML of the true physics")
    hybrid_config: Path = setting(CONFIG, "configs/hybrid.yaml", "YAML of everything else")
    learn_config: Path = setting(CONFIG, "configs/learn.yaml", "YAML of learning")
    controls: bool = setting(SWITCH, "1", "0: no controls beside the hybrids; 1: plain MD at the baseline's timestep "
                             f"and, up to {LONGEST_PLAIN_FS:g} fs, at k timesteps in one; beside jumps also the same "
                             "without the network")
    device: str = setting(DEVICE, "auto", "where the network runs")

    def __post_init__(self) -> None:
        load_qm_config(self.qm_config)
        given = load_config(HybridConfig, self.hybrid_config)
        if self.steps is None and all(getattr(given, key) is None for key in ENDS):
            self.steps = 200
        self.scheme = self.scheme or (PROPOSES if self.per_molecule or self.learn else JUMPS)
        samples = SCHEMES[self.scheme] in SAMPLERS
        if self.learn and not samples:
            raise UserError(f"LEARN=1 is for SCHEME={' or '.join(kind.name for kind in SAMPLERS)}, not {self.scheme}")
        self.k_steps = self.k_steps or ((1000,) if samples else (8,))
        if self.learn or not self._has_network:
            self.checkpoint = None
            return
        if self.checkpoint is None:
            self.checkpoint = self.at("networks", MOLECULE if self.per_molecule else ALL, "best.pt")
            if not self.per_molecule:
                self.made_before(self.checkpoint, Train.script)
        elif MOLECULE not in str(self.checkpoint) and not self.checkpoint.is_file():
            raise UserError(f"CHECKPOINT is '{self.checkpoint}', which is not a file")

    @property
    def _has_network(self) -> bool:
        return SCHEMES[self.scheme].traits.needs_network

    def commands(self, task: str) -> list[Command]:
        """The runs first, then their controls."""
        network = [] if self.checkpoint is None else ["--checkpoint", self._network_of(task)]
        carried = ["--learn", "--learn-config", str(self.learn_config)] if self.learn else network
        found = []
        if self._has_network:
            for k in self.k_steps:
                found.append(self._run(task, f"{self.scheme}_k{k}", {"scheme": self.scheme, "k_steps": k}, carried))
        if self.controls and SCHEMES[self.scheme].traits.jumps:
            for k in self.k_steps:
                asked = {"scheme": self.scheme, "k_steps": k, "delta_scale": 0.0}
                found.append(self._run(task, f"{self.scheme}_k{k}_bare", asked, network))
        if self.controls or not self._has_network:
            for dt_fs in (None, *self._long_steps()):
                found.append(self._control(task, dt_fs))
        return found

    def _network_of(self, task: str) -> str:
        return str(self.checkpoint).replace(MOLECULE, task)

    def _long_steps(self) -> list[float]:
        """The timesteps of k baseline steps in one that plain MD survives, fs."""
        dt_fs = load_qm_config(self.qm_config).dt_fs
        return [k * dt_fs for k in self.k_steps if k > 1 and k * dt_fs <= LONGEST_PLAIN_FS]

    def _control(self, task: str, dt_fs: float | None) -> Command:
        """Plain MD, at the baseline's timestep or at its own: such a one may break, which is what it is run for."""
        given = load_config(HybridConfig, self.hybrid_config)
        less = [word for key, value in PLAIN.items() if getattr(given, key) != value
                for word in ("--set", f"{key}={json.dumps(value)}")]  # what plain MD would refuse
        name = CONTROL.name if dt_fs is None else f"{CONTROL.name}_{dt_fs:g}fs"
        return self._run(task, name, {"scheme": CONTROL.name, "dt_fs": dt_fs}, less, base=PLAIN,
                         may_break=dt_fs is not None)

    def _run(self, task: str, name: str, asked: Mapping[str, Any], more: list[str], *,
             base: Mapping[str, Any] = MappingProxyType({}), may_break: bool = False) -> Command:
        """A run: what is asked of it alone, in the place of what `base` and the hybrid config say."""
        flags = [word for key, value in asked.items() if value is not None
                 for word in (f"--{key.replace('_', '-')}", f"{value:g}" if isinstance(value, float) else str(value))]
        start = [] if self.learn else ["--initial-md", str(self.at("md", task, "trajectory.npz"))]
        out = self.at("hybrid", task, f"{name}.npz")
        words = ["sample", str(self.at("raw", task)), "--config", str(self.qm_config),
                 "--hybrid-config", str(self.hybrid_config), *flags, *more, *start,
                 *(["--steps", str(self.steps)] if self.steps is not None else []),
                 "--device", self.device, "--num-workers", str(self.threads_per_job), "--resume", "--out", str(out)]
        uses = self.checkpoint is not None and SCHEMES[asked["scheme"]].traits.needs_network
        wanted = HybridWanted({**base, **asked}, self.hybrid_config, self.steps,
                              Path(self._network_of(task)) if uses else None, learns=self.learn, may_break=may_break)
        return Command(words, (out,), partial(judging.judge_hybrid, wanted=wanted),
                       (0, SHORT_OF_AIM, BROKE) if may_break else (0, SHORT_OF_AIM),
                       needs=self.at("raw", task, "molecule.npz"))


@dataclass
class Evaluate(Stage):
    """The hybrid runs of every molecule against its trajectories: OUT_DIR/eval/<molecule>/{report.html,metrics.json}.

    And OUT_DIR/eval/table.txt over all molecules.
    """

    script = "eval_qm"

    def commands(self, task: str) -> list[Command]:
        """One for each molecule."""
        runs, md, out = self.at("hybrid", task), self.at("md", task), self.at("eval", task)
        return [Command(["evaluate", str(runs), "--baseline", str(md), "--out-dir", str(out)],
                        (out / "metrics.json",), partial(judging.judge_report, runs=runs, md=md))]

    def afterwards(self) -> str:
        """The table."""
        return f"{judging.report_table(self.at('eval'))}\n\nwrote {self.at('eval', 'table.txt')}"


@dataclass
class Conformers(Stage):
    """The conformers of every molecule, from nothing but its SMILES or structure: OUT_DIR/populations/<molecule>.npz.

    Each run learns its own network, then samples the true potential until it knows enough.  All their conformers
    stand in OUT_DIR/populations/populations.csv.
    """

    script = "populations"
    qm_config: Path = setting(CONFIG, "configs/qm.yaml", "YAML of the true physics, its solvent and temperature")
    hybrid_config: Path = setting(CONFIG, "configs/hybrid.yaml", "YAML of the sampling: scheme, aim, budget, ladder")
    learn_config: Path = setting(CONFIG, "configs/learn.yaml", "YAML of learning")
    device: str = setting(DEVICE, "auto", "where the network runs")

    def __post_init__(self) -> None:
        load_qm_config(self.qm_config)
        load_config(HybridConfig, self.hybrid_config)

    def commands(self, task: str) -> list[Command]:
        """Prepared, then sampled."""
        out = self._run_of(task)
        words = ["sample", str(self.at("raw", task)), "--config", str(self.qm_config),
                 "--hybrid-config", str(self.hybrid_config), "--learn", "--learn-config", str(self.learn_config),
                 "--device", self.device, "--num-workers", str(self.threads_per_job), "--resume", "--out", str(out)]
        return [self.preparing(task), Command(words, (out,), partial(
            judging.judge_populations, hybrid_config=self.hybrid_config, qm_config=self.qm_config), (0, SHORT_OF_AIM))]

    def _run_of(self, task: str) -> Path:
        return self.at("populations", f"{task}.npz")

    def afterwards(self) -> str:
        """The conformers of all molecules whose run is there, those of other parts of the list too."""
        path = self.at("populations", "populations.csv")
        listed = [run for run in map(self._run_of, self.sources) if run.is_file()]
        conformers, molecules = judging.write_populations(path, dict.fromkeys(
            [*listed, *sorted(path.parent.glob("*.npz"))]))
        return f"wrote {path}: {conformers} conformers of {molecules} molecules"


STAGES: dict[str, type[Stage]] = {"baseline": Baseline, "dataset": Dataset, "train": Train, "sample": Sample,
                                  "evaluate": Evaluate, "populations": Conformers}
