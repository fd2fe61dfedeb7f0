"""Which runs make up a benchmark: how long each is, where it goes, and the command a user would type."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kstep.config import load_config, validate
from kstep.learning.learn_config import LearnConfig
from kstep.schemes import CONTROL, SAMPLERS, SCHEMES
from kstep.schemes.hybrid_config import HybridConfig
from kstep.stages.physics import TruePhysics
from kstep.stages.plain_md import PlainMDSettings, run_one
from kstep.stages.sampling import SamplingSettings, sample
from kstep.units import FS_PER_PS

HYBRID, LEARN = "configs/hybrid.yaml", "configs/learn.yaml"

TIMESTEPS_FS = (0.25, 0.5, 1.0, 2.0)
REFERENCE_FS, COMPETITOR_FS = 0.5, 1.0  # floors come from the first, rates to beat from the second
JUMP_FS = 4.0  # about the macro-step of a scheme whose network fixes it
FRAME_FS = 2.0  # between stored frames: resolves an O-H stretch
FIRST_REFERENCE, FIRST_TIMED = 100, 300  # replica numbers, at least: other seeds than training data
EXACT, RIVAL = (kind.name for kind in SAMPLERS[:2])  # the sampler that is judged, and the one it is set against
DEAR_CALL_S = 60.0  # of a true call that is a minute of DFT
FEWEST_PROPOSALS = 10  # per replica
DYNAMICS = tuple(name for name, kind in SCHEMES.items() if kind.traits.needs_network and kind.traits.keeps_velocities)


@dataclass(frozen=True)
class Lengths:
    """Of every part; ps are per replica, and windows are NVE stretches for the drift."""

    reference_replicas: int = 4
    reference_ps: float = 40.0  # plain at 1 fs
    fine_reference_ps: float = 20.0  # plain at 0.5 fs
    equilibration_ps: float = 2.0
    timed_replicas: int = 4
    timed_ps: float = 2.0
    timed_windows: int = 2
    timed_window_ps: float = 2.5
    replicas: int = 64  # of the samplers, and of the network's own dynamics
    proposals: int = 100  # per replica, after burn-in
    burn_in: int = 20
    dear_share: float = 0.2  # of both, where a proposal is made for a dear call and holds nearly one sample
    learn_proposals: int = 50  # per replica of a cold start
    impulse_windows: int = 16
    impulse_window_ps: float = 5.0
    checked_windows: int = 8
    checked_window_ps: float = 20.0
    dynamics_replicas: int = 16  # impulse, checked and jump with the thermostat
    dynamics_ps: float = 10.0
    spectrum_ps: float = 2.0
    network_ps: float = 200.0

    def scaled(self, effort: float) -> Lengths:
        """Everything that only sharpens a figure, times `effort`; what a bar prescribes stays."""
        lengths = {key: getattr(self, key) * effort for key in
                   ("reference_ps", "fine_reference_ps", "timed_ps", "dynamics_ps", "network_ps")}
        short = min(effort, 1.0)
        return replace(self, **lengths, proposals=max(FEWEST_PROPOSALS, round(self.proposals * effort)),
                       equilibration_ps=max(0.5, self.equilibration_ps * short),
                       timed_windows=max(1, round(self.timed_windows * short)))


FAST = Lengths(reference_replicas=2, reference_ps=1.0, fine_reference_ps=0.5, equilibration_ps=0.1, timed_replicas=2,
               timed_ps=0.2, timed_windows=2, timed_window_ps=0.5, replicas=8, proposals=20, burn_in=2,
               learn_proposals=20, impulse_windows=4, impulse_window_ps=0.5, checked_windows=4, checked_window_ps=0.5,
               dynamics_replicas=4, dynamics_ps=0.2, spectrum_ps=0.5, network_ps=2.0)


@dataclass(frozen=True)
class Variant:
    """An exact sampler, and the seconds of a true call that its tuning reckons with; None: what it measures here."""

    scheme: str
    call_cost_s: float | None = None

    @property
    def name(self) -> str:
        """As tables call it."""
        return self.scheme if self.call_cost_s is None else f"{self.scheme}, call of {self.call_cost_s:g} s"

    def kind(self, seed: int) -> str:
        """Of the file of a seed."""
        return f"seed_{seed}" if self.call_cost_s is None else f"call_{self.call_cost_s:g}s_seed_{seed}"


@dataclass(frozen=True)
class StageCall:
    """A function of kstep.stages with its settings, the file it writes, and the words of the same command."""

    result: Path
    function: Callable
    settings: PlainMDSettings | SamplingSettings
    words: tuple[str, ...]

    @property
    def text(self) -> str:
        """The command as one would type it."""
        return shlex.join(["kstep", *self.words])


def command_words(*parts, **keys) -> tuple[str, ...]:
    """The parts of a command line as text, then `--set key=value` for every key."""
    values = {key: value if isinstance(value, str) else json.dumps(value) for key, value in keys.items()}
    return (*map(str, parts), *(word for key, value in values.items() for word in ("--set", f"{key}={value}")))


def dt_name(dt_fs: float) -> str:
    """'05fs' for 0.5."""
    return f"{dt_fs:g}fs".replace(".", "")


@dataclass(frozen=True)
class Plan:
    """The runs of one molecule into `out`; config_path: YAML that its physics was read from; dear_call_s: seconds of a
    true call that samplers which can are tuned for besides, None: for this machine's alone.
    """

    physics: TruePhysics
    config_path: Path
    out: Path
    lengths: Lengths
    n_workers: int
    seed: int = 0
    dear_call_s: float | None = DEAR_CALL_S

    @property
    def name(self) -> str:
        """The molecule's name."""
        return self.physics.molecule.name

    def plain_path(self, dt_fs: float) -> Path:
        """The long plain run; at 0.25 and 2 fs there is only the timed one."""
        kind = CONTROL.name if dt_fs in (REFERENCE_FS, COMPETITOR_FS) else "timed"
        return self.out / f"{kind}_{dt_name(dt_fs)}" / self.name / "trajectory.npz"

    def timed_path(self, dt_fs: float) -> Path:
        """The short run that times plain MD at dt_fs."""
        return self.out / f"timed_{dt_name(dt_fs)}" / self.name / "trajectory.npz"

    def path(self, scheme: str, kind: str) -> Path:
        """A hybrid run, such as impulse/nve.npz or learn/seed_0.npz."""
        return self.out / scheme / f"{kind}.npz"

    @property
    def variants(self) -> tuple[Variant, ...]:
        """The exact samplers side by side, each tuned for this machine, and for a dear call where its tuning can."""
        dear = [] if self.dear_call_s is None else [self.dear_call_s]
        return tuple(Variant(kind.name, cost) for kind in SAMPLERS
                     for cost in (None, *(dear if "call_cost_s" in kind.Config.model_fields else [])))

    @property
    def network_path(self) -> Path:
        """The trajectory of the network's own dynamics."""
        return self.out / "network_dynamics.npz"

    def references(self) -> list[StageCall]:
        """Long plain runs at 0.5 and 1 fs, with other seeds than any training data."""
        return [self._plain(dt, self.plain_path(dt), FIRST_REFERENCE, self.lengths.reference_replicas, length_ps=length)
                for dt, length in ((COMPETITOR_FS, self.lengths.reference_ps),
                                   (REFERENCE_FS, self.lengths.fine_reference_ps))]

    def timed(self) -> list[StageCall]:
        """Short plain runs at every timestep: what a call costs here and now, drift and spectrum."""
        use = self.lengths
        return [self._plain(dt, self.timed_path(dt), FIRST_TIMED, use.timed_replicas, length_ps=use.timed_ps,
                            drift_windows=use.timed_windows, drift_length_ps=use.timed_window_ps)
                for dt in TIMESTEPS_FS]

    def _plain(self, dt_fs, result, first, replicas, **lengths) -> StageCall:
        config, folder = self.physics.config, self.physics.folder
        n_conformers = len(self.physics.molecule.conformers)
        first = -(-first // n_conformers) * n_conformers  # which begins in the best: few replicas, and none may leave
        keys = {"dt_fs": dt_fs, "hot_length_ps": 0, "drift_windows": 0, "replicas": replicas,
                "equilibration_ps": self.lengths.equilibration_ps, "redraw_interval_ps": config.redraw_interval_ps,
                "save_interval_steps": max(1, round(FRAME_FS / dt_fs)), **lengths}
        config = validate(type(config), config.model_dump() | keys, str(self.config_path))
        physics = replace(self.physics, config=config)
        keeps_forces = not self.physics.is_mm
        settings = PlainMDSettings(((physics, result),), self.seed, first, self.n_workers, True, keeps_forces)
        words = command_words("baseline", folder, "--config", self.config_path, "--out", result.parents[1],
                              "--first-replica", first, "--seed", self.seed, "--num-workers", self.n_workers,
                              "--resume", *([] if keeps_forces else ["--no-store-forces"]), **keys)
        return StageCall(result, run_one, settings, words)

    def learn(self, seed: int) -> StageCall:
        """A cold start: learn from true calls alone, freeze, tune, produce."""
        return self._hybrid("learn", f"seed_{seed}", seed, learn=True, replicas=self.lengths.replicas,
                            steps=self.lengths.learn_proposals)

    def learned_checkpoint(self, seed: int) -> Path:
        """The network that the cold start of a seed freezes."""
        result = self.path("learn", f"seed_{seed}")
        return result.with_name(result.name + ".learn") / "network.pt"

    @property
    def refit_checkpoint(self) -> Path:
        """The network fitted to the labels of all cold starts."""
        return self.out / "refit" / "network.pt"

    def sampler(self, variant: Variant, checkpoint: Path | None, seed: int) -> StageCall:
        """The run of an exact sampler and a seed with a network that is there already, or with one that it learns."""
        use, share = self.lengths, 1.0
        keys: dict[str, Any] = {"scheme": variant.scheme, "tune": True, "replicas": self.lengths.replicas}
        if variant.call_cost_s is not None:
            share, keys["call_cost_s"] = use.dear_share, variant.call_cost_s
        return self._hybrid(variant.scheme, variant.kind(seed), seed, checkpoint, learn=checkpoint is None, **keys,
                            steps=max(FEWEST_PROPOSALS, round(share * use.proposals)),
                            burn_in_steps=max(2, round(share * use.burn_in)))

    def dynamics(self, scheme: str, checkpoint: Path) -> list[StageCall]:
        """One of DYNAMICS: NVE windows, then a run with the thermostat.

        A scheme that moves by the network's force alone does so whatever the macro-step, so one run more, with a short
        one, shows its spectrum.  One without a macro-step of its own keeps the timestep and the k of its network.
        """
        use, own_fs = self.lengths, SCHEMES[scheme].default_fs
        fs, by_network = own_fs or JUMP_FS, SCHEMES[scheme].traits.ensemble == "network"
        windows, window_ps = ((use.checked_windows, use.checked_window_ps) if by_network else
                              (use.impulse_windows, use.impulse_window_ps))
        warm_up = max(1, round(use.dynamics_ps / 5 * FS_PER_PS / fs))

        def run(kind, macro_fs, replicas, length_ps, **keys):
            if own_fs:
                keys["k_steps"] = max(1, round(macro_fs / self.physics.config.dt_fs))
            return self._hybrid(scheme, kind, self.seed, checkpoint, self.plain_path(COMPETITOR_FS), scheme=scheme,
                                replicas=replicas, steps=max(4, round(length_ps * FS_PER_PS / macro_fs)), **keys)

        nve = {"thermostat": "none", "burn_in_steps": 0}
        runs = [run("nve", fs, windows, window_ps, **nve),
                run("nvt", fs, use.dynamics_replicas, use.dynamics_ps, thermostat="langevin", burn_in_steps=warm_up)]
        if by_network:
            runs.append(run("spectrum", FRAME_FS, windows, use.spectrum_ps, **nve))
        return runs

    def _hybrid(self, folder: str, kind: str, seed: int, checkpoint: Path | None = None,
                initial_md: Path | None = None, *, learn: bool = False, **keys: Any) -> StageCall:
        result = self.path(folder, kind)
        settings = SamplingSettings(
            physics=self.physics, hybrid=load_config(HybridConfig, HYBRID, keys), out=result, checkpoint=checkpoint,
            learn=learn, learn_config=load_config(LearnConfig, LEARN), initial_md=initial_md, seed=seed,
            n_workers=self.physics.workers(None if self.physics.is_mm else self.n_workers))
        optional = {"--checkpoint": checkpoint, "--initial-md": initial_md}
        words = command_words("sample", self.physics.folder, "--config", self.config_path, "--out", result,
                              "--num-workers", settings.n_workers, "--seed", seed, *(["--learn"] if learn else []),
                              *(word for flag, path in optional.items() if path for word in (flag, path)), **keys)
        return StageCall(result, sample, settings, words)
