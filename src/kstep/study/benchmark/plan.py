"""Which runs make up a benchmark: how long each is, where it goes, and the command a user would type."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from kstep.units import FS_PER_PS

TIMESTEPS_FS = (0.25, 0.5, 1.0, 2.0)
REFERENCE_FS, COMPETITOR_FS = 0.5, 1.0  # floors come from the first, rates to beat from the second
IMPULSE_FS, CHECKED_FS = 2.0, 16.0  # macro-steps
JUMP_FS = 4.0  # about; the network fixes it
FRAME_FS = 2.0  # between stored frames: resolves an O-H stretch
FIRST_REFERENCE, FIRST_TIMED = 100, 300  # replica numbers: other seeds and conformers than training data


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
    replicas: int = 64  # metropolis, and the network's own dynamics
    proposals: int = 100  # per replica, after burn-in
    burn_in: int = 20
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
        return replace(self, **lengths, proposals=max(10, round(self.proposals * effort)),
                       equilibration_ps=max(0.5, self.equilibration_ps * short),
                       timed_windows=max(1, round(self.timed_windows * short)))


FAST = Lengths(reference_replicas=2, reference_ps=1.0, fine_reference_ps=0.5, equilibration_ps=0.1, timed_replicas=2,
               timed_ps=0.2, timed_windows=2, timed_window_ps=0.5, replicas=8, proposals=20, burn_in=2,
               learn_proposals=20, impulse_windows=4, impulse_window_ps=0.5, checked_windows=4, checked_window_ps=0.5,
               dynamics_replicas=4, dynamics_ps=0.2, spectrum_ps=0.5, network_ps=2.0)


@dataclass(frozen=True)
class Command:
    """One numbered script with its flags, and the file it writes."""

    result: Path
    script: str
    words: tuple[str, ...]

    @property
    def text(self) -> str:
        """The command as one would type it."""
        return " ".join(["python", f"src/{self.script}", *self.words])


def words(*parts) -> tuple[str, ...]:
    """The parts of a command line as text."""
    return tuple(str(part) for part in parts)


def settings(**pairs) -> tuple[str, ...]:
    """`--set key=value` for every pair."""
    return tuple(word for key, value in pairs.items() for word in ("--set", f"{key}={value:g}"))


def dt_name(dt_fs: float) -> str:
    """'05fs' for 0.5."""
    return f"{dt_fs:g}fs".replace(".", "")


@dataclass(frozen=True)
class Plan:
    """The runs of one molecule; `level` is qm or mm, `config` its YAML, `molecule` the prepared folder.

    redraw_ps and dt_fs are the config's: between velocity redraws of plain MD, and of the network's steps.
    """

    level: str
    name: str
    smiles: str
    molecule: Path
    config: Path
    out: Path
    lengths: Lengths
    n_workers: int
    seed: int = 0
    redraw_ps: float = 0.5
    dt_fs: float = 0.5

    def plain_path(self, dt_fs: float) -> Path:
        """The long plain run; at 0.25 and 2 fs there is only the timed one."""
        kind = "plain" if dt_fs in (REFERENCE_FS, COMPETITOR_FS) else "timed"
        return self.out / f"{kind}_{dt_name(dt_fs)}" / self.name / "trajectory.npz"

    def timed_path(self, dt_fs: float) -> Path:
        """The short run that times plain MD at dt_fs."""
        return self.out / f"timed_{dt_name(dt_fs)}" / self.name / "trajectory.npz"

    def path(self, scheme: str, kind: str) -> Path:
        """A hybrid run, such as impulse/nve.npz, metropolis/seed_0.npz or learn/seed_0.npz."""
        return self.out / scheme / f"{kind}.npz"

    @property
    def network_path(self) -> Path:
        """The trajectory of the network's own dynamics."""
        return self.out / "network_dynamics.npz"

    def references(self) -> list[Command]:
        """Long plain runs at 0.5 and 1 fs, from other conformers and seeds than any training data."""
        return [self._plain(dt, self.plain_path(dt), FIRST_REFERENCE, self.lengths.reference_replicas, length_ps=length)
                for dt, length in ((COMPETITOR_FS, self.lengths.reference_ps),
                                   (REFERENCE_FS, self.lengths.fine_reference_ps))]

    def timed(self) -> list[Command]:
        """Short plain runs at every timestep: what a call costs here and now, drift and spectrum."""
        use = self.lengths
        return [self._plain(dt, self.timed_path(dt), FIRST_TIMED, use.timed_replicas, length_ps=use.timed_ps,
                            drift_windows=use.timed_windows, drift_length_ps=use.timed_window_ps) for dt in TIMESTEPS_FS]

    def _plain(self, dt_fs, result, first, replicas, **lengths) -> Command:
        flags = words("--config", self.config, "--out", result.parents[1], "--first-replica", first, "--replicas", replicas,
                      "--seed", self.seed, "--resume")
        flags += settings(dt_fs=dt_fs, hot_length_ps=0, drift_windows=lengths.pop("drift_windows", 0),
                          equilibration_ps=self.lengths.equilibration_ps, redraw_interval_ps=self.redraw_ps,
                          save_interval_steps=max(1, round(FRAME_FS / dt_fs)), **lengths)
        if self.level == "mm":
            return Command(result, "01_run_md_baselines.py",
                           words("--molecule", self.molecule, "--no-store-forces") + flags)
        return Command(result, "01b_run_qm_baselines.py",
                       words("--smiles-file", self.smiles_file, "--molecule", self.name, "--raw", self.molecule.parent,
                             "--num-workers", self.n_workers) + flags)

    @property
    def smiles_file(self) -> Path:
        """The SMILES file that 01b is given."""
        return self.out / f"{self.name}.smi"

    def learn(self, seed: int) -> Command:
        """A cold start: learn from true calls alone, freeze, tune, produce."""
        use = self.lengths
        return self._hybrid("learn", f"seed_{seed}", "--learn", "--seed", seed, "--replicas", use.replicas,
                            "--steps", use.learn_proposals)

    def learned_checkpoint(self, seed: int) -> Path:
        """The network that the cold start of a seed freezes."""
        result = self.path("learn", f"seed_{seed}")
        return result.with_name(result.name + ".learn") / "network.pt"

    @property
    def refit_checkpoint(self) -> Path:
        """The network fitted to the labels of all cold starts."""
        return self.out / "refit" / "network.pt"

    def metropolis(self, checkpoint: Path, seed: int) -> Command:
        """A metropolis run of a seed with a network that is there already."""
        use = self.lengths
        return self._hybrid("metropolis", f"seed_{seed}", "--scheme", "metropolis", "--tune", "--checkpoint", checkpoint,
                            "--seed", seed, "--replicas", use.replicas, "--steps", use.proposals, "--burn-in-steps",
                            use.burn_in)

    def dynamics(self, scheme: str, checkpoint: Path) -> list[Command]:
        """impulse, checked or jump: NVE windows, then a run with the thermostat.

        checked is the network's dynamics whatever the macro-step, so one run more, with a short one,
        shows its spectrum.  jump keeps the timestep and the k of its network.
        """
        use = self.lengths
        fs = {"impulse": IMPULSE_FS, "checked": CHECKED_FS, "jump": JUMP_FS}[scheme]
        windows, window_ps = ((use.checked_windows, use.checked_window_ps) if scheme == "checked" else
                              (use.impulse_windows, use.impulse_window_ps))
        warm_up = max(1, round(use.dynamics_ps / 5 * FS_PER_PS / fs))

        def run(kind, macro_fs, replicas, length_ps, *flags):
            k_steps = () if scheme == "jump" else ("--k-steps", max(1, round(macro_fs / self.dt_fs)))
            return self._hybrid(scheme, kind, "--scheme", scheme, "--checkpoint", checkpoint, *k_steps, "--replicas", replicas,
                                "--steps", max(4, round(length_ps * FS_PER_PS / macro_fs)), "--seed", self.seed,
                                "--initial-md", self.plain_path(COMPETITOR_FS), *flags)

        nve = ("--thermostat", "none", "--burn-in-steps", 0)
        runs = [run("nve", fs, windows, window_ps, *nve),
                run("nvt", fs, use.dynamics_replicas, use.dynamics_ps, "--thermostat", "langevin", "--burn-in-steps", warm_up)]
        if scheme == "checked":
            runs.append(run("spectrum", FRAME_FS, windows, use.spectrum_ps, *nve))
        return runs

    def _hybrid(self, folder: str, kind: str, *flags) -> Command:
        result = self.path(folder, kind)
        script, config = (("06_hybrid_integrate.py", "--md-config") if self.level == "mm" else
                          ("06b_hybrid_integrate_qm.py", "--qm-config"))
        # an MM call costs less than sending it to a worker, and 06 knows
        workers = () if self.level == "mm" else ("--num-workers", self.n_workers)
        return Command(result, script, words("--molecule", self.molecule, config, self.config, "--out", result, *workers,
                                             *flags))
