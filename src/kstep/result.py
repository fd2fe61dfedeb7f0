"""A finished run as Python sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kstep.errors import UserError
from kstep.schemas import PER_FRAME, Trajectory, load_trajectory

if TYPE_CHECKING:
    import ase
    import mdtraj

    from kstep.analysis.measure.free_energy import FreeEnergy
    from kstep.analysis.measure.infrared import Spectrum
    from kstep.analysis.measure.observables import Observed
    from kstep.analysis.measure.populations import Populations

PRODUCTION = ("train", "reference", "drift")  # roles; the others equilibrate, or are hotter than what was asked for


@dataclass(frozen=True)
class Result:
    """A trajectory file: its production frames, or with `whole` all of them.  Printing it gives the one-line answer.

    by_weight: as many production frames, each as often as it weighs, so that all count alike.
    """

    path: Path
    whole: bool = False
    by_weight: bool = False

    @cached_property
    def trajectory(self) -> Trajectory:
        """Every array of the file, in nm, ps, Da and kJ/mol (see kstep.schemas)."""
        return load_trajectory(self.path)

    @property
    def metadata(self) -> dict[str, Any]:
        """What the file says of the run: method, scheme, settings, true calls, seconds, status."""
        return self.trajectory.metadata

    @cached_property
    def frames(self) -> np.ndarray:
        """Rows (F,) of the trajectory that this result stands for, replica after replica."""
        t = self.trajectory
        rows = np.arange(len(t.pos)) if self.whole else t.frames_of(*PRODUCTION)
        rows = rows[np.lexsort((t.step[rows], t.replica[rows]))]
        return t.drawn(rows, len(rows)) if self.by_weight and t.is_weighted and len(rows) else rows

    @property
    def chosen(self) -> Trajectory:
        """The trajectory of these frames alone."""
        t = self.trajectory
        arrays = {key: getattr(t, key) for key in PER_FRAME
                  if key not in ("weight", "bias") or not self.by_weight}
        if self.by_weight:
            t = replace(t, weight=t.weight[:0], bias=t.bias[:0])
        return replace(t, **{key: array[self.frames] for key, array in arrays.items() if len(array)})

    @property
    def positions(self) -> np.ndarray:
        """Positions (F,N,3), nm."""
        return self.trajectory.pos[self.frames]

    @property
    def energies(self) -> np.ndarray:
        """True potential energies (F,), kJ/mol; averages over frames are taken under `weights`."""
        return self.trajectory.Epot[self.frames]

    @property
    def weights(self) -> np.ndarray:
        """Weights (F,) of the frames, of mean 1: an average is (weights * f).mean(); all 1 unless the run says so."""
        return np.ones(len(self)) if self.by_weight else self.trajectory.weights_of(self.frames)

    @property
    def acceptance(self) -> float | None:
        """Share of accepted proposals; None for a scheme that refuses nothing."""
        return self.metadata.get("acceptance")

    @property
    def aim(self) -> dict[str, Any] | None:
        """What a run without a fixed length was to know, what it does, and why it ended there (kstep.runs.aim)."""
        return self.metadata.get("aim")

    @property
    def converged(self) -> bool | None:
        """Whether the run reached its aim; None for one of fixed length, which has none."""
        return self.aim["reached"] if self.aim is not None else None

    @property
    def true_calls(self) -> int:
        """Evaluations of the true potential, those of learning apart (metadata["true_calls_training"])."""
        return self.metadata["true_calls"]

    def profile(self, *coordinates: str, bins: int = 36, with_runs: Sequence[Result | str | Path] = ()) -> FreeEnergy:
        """Free energy along a coordinate such as "dihedral:0-1-2-3" or "distance:3-7", or on the plane of two.

        Without a name: along the only rotatable torsion.  with_runs: others of the molecule; those under other
        restraints are windows, which MBAR joins.  UserError for a name that is none.
        """
        from kstep.analysis.profiles import named, profiles, samples_of

        paths = [self.path, *(run.path if isinstance(run, Result) else run for run in with_runs)]
        samples, chosen = samples_of(paths), named(coordinates)
        found = profiles(samples, chosen, as_map=len(chosen) == 2, bins=bins)
        if len(found) > 1:
            names = ", ".join(one.coordinates[0].name for one in found)
            raise UserError(f"name one coordinate, or two for a map, such as {names.replace(' ', ':')}")
        return found[0]

    def all(self) -> Result:
        """The same file with its equilibration and hot frames."""
        return Result(self.path, whole=True)

    def alike(self) -> Result:
        """The same file's production frames drawn by weight, for what takes every frame to count alike."""
        return Result(self.path, by_weight=True)

    def populations(self, temperature_K: float | None = None, *, smallest: float | None = None) -> Populations:
        """Populations of the conformers, with errors (kstep.populations, which joins runs and relaxes, too)."""
        from kstep.analysis.measure.populations import SMALLEST, populations

        return populations([self.trajectory], temperature_K, smallest=SMALLEST if smallest is None else smallest)

    def average(self, function: Callable[[np.ndarray], np.ndarray] | str, temperature_K: float | None = None, *,
                one_by_one: bool = False) -> Observed:
        """Average of a function of positions (F,N,3) nm, one value or row per frame, with error and effective samples.

        function: or "dipole" or "radius_of_gyration"; one_by_one: it takes the positions (N,3) of one frame instead.
        """
        from kstep.analysis.measure.observables import average

        return average([self.trajectory], function, temperature_K, one_by_one=one_by_one)

    def atoms(self) -> list[ase.Atoms]:
        """The frames as ASE Atoms, with energies and, where the file has them, forces."""
        from kstep.analysis.show.formats import to_atoms

        return to_atoms(self.chosen)

    def mdtraj(self) -> mdtraj.Trajectory:
        """The frames as an MDTraj trajectory."""
        from kstep.analysis.show.formats import to_mdtraj

        return to_mdtraj(self.chosen)

    def report(self, out: str | Path | None = None, *, baseline: Result | str | Path | None = None) -> Path:
        """Write one HTML page of the run: conformers in 3D, populations, torsions, convergence, cost; returns its path.

        out: the file (None: <run>_report.html beside the run); baseline: plain MD of the same molecule and method.
        """
        from kstep.analysis.show.report import report_path, write_report

        path = report_path(self.path) if out is None else Path(out)
        plain = baseline.path if isinstance(baseline, Result) else baseline
        write_report(self.path, path, baseline=None if plain is None else Path(plain))
        return path

    def spectrum(self, baseline: Result | str | Path | None = None, *, window_ps: float | None = None) -> Spectrum:
        """The infrared spectrum and its peaks, in km/mol, beside that of plain MD (see kstep.analysis.spectrum).

        window_ps: length of the stretches that are transformed (None: the longest, 2 ps at most).  UserError for a run
        whose velocities follow no dynamics.
        """
        from kstep.analysis.spectrum import infrared

        plain = baseline if isinstance(baseline, Result) or baseline is None else Result(Path(baseline))
        return infrared(self.trajectory, baseline=plain.trajectory if plain else None, window_ps=window_ps)

    def __len__(self) -> int:
        return len(self.frames)

    def __iter__(self) -> Iterator[ase.Atoms]:
        return iter(self.atoms())

    def __str__(self) -> str:
        from kstep.runs.counters import describe

        m = self.metadata
        text = (describe(m) if "tally" in m else
                f"{m['molecule']} {m['scheme']}, {m['method']}: {len(self)} frames, {m['true_calls']} true calls")
        return f"{text} -> {self.path}"
