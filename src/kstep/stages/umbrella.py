"""Umbrella sampling: windows of a restraint along one coordinate, each a run, with one network for all of them."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from kstep.errors import UserError
from kstep.files import check_writable
from kstep.molecules.restrained import led_to
from kstep.restraints import ALLOWED, UNITS, Restraint, check_restraints
from kstep.schemes.hybrid_config import HybridConfig
from kstep.stages.sampling import SamplingSettings, learn_network, learned_folders, sample

log = logging.getLogger("kstep")

ACCEPTANCE_TOO_LOW = 0.05  # of a window, below which its network hardly knows it


@dataclass(frozen=True, kw_only=True)
class UmbrellaSettings:
    """sampling: of every window, `out` the folder of all; windows: the restraint of each, besides those of the config.
    """

    sampling: SamplingSettings
    windows: tuple[Restraint, ...]


def windows_along(kind: str, atoms: tuple[int, ...], n: int, k: float, start: float | None = None,
                  end: float | None = None) -> tuple[Restraint, ...]:
    """n restraints of strength k with centres from start to end; of a dihedral, by default, all the way round.

    UserError for a range that is none.
    """
    if (start is None) != (end is None):
        raise UserError("--from and --to go together")
    if start is None or end is None:
        if kind != "dihedral":
            raise UserError(f"windows along the {kind} need --from and --to, in {UNITS[kind]}")
        centres = -180.0 + np.arange(n) * 360.0 / n
    else:
        low, high = ALLOWED[kind]
        if not (low <= start < end <= high and (kind != "dihedral" or end - start <= 360.0)):
            raise UserError(f"windows along the {kind} go from a smaller to a larger number between {low:g} and "
                            f"{high:g} {UNITS[kind]}, not from {start:g} to {end:g}")
        centres = np.linspace(start, end, n)
    return tuple(Restraint(kind=kind, atoms=atoms, centre=float(c), k=k) for c in centres)  # type: ignore[arg-type]


def window_file(folder: Path, number: int) -> Path:
    """The run of a window."""
    return folder / f"window_{number:02d}.npz"


def run_windows(settings: UmbrellaSettings) -> tuple[list[Path], list[dict]]:
    """Learn where that is asked, once and without windows; then run them all: files and metadata.

    What the first window has measured of moves, lengths and rungs holds for the others too.
    """
    s, windows = settings.sampling, settings.windows
    check_restraints(windows, len(s.physics.molecule))
    check_writable(s.out, folder=True)
    fixed = (s.physics.config.restraints if s.hybrid.restraints is None else s.hybrid.restraints) or ()
    hybrid, checkpoint = s.hybrid, s.checkpoint
    if s.learns:
        physics = replace(s.physics, molecule=_with_starts_of(s.physics.molecule, fixed, windows))
        network = replace(s, physics=physics, out=s.out / "network")
        network.settle_output({}, learns=True, runs=False, more=learned_folders(network)[1:])
        hybrid, checkpoint = learn_network(network)
    paths, records = [], []
    for number, window in enumerate(windows):
        path = window_file(s.out, number)
        record = sample(replace(s, learn=False, via=(), teacher=None, labels=None if s.learns else s.labels,
                                checkpoint=checkpoint, out=path,
                                hybrid=hybrid.model_copy(update={"restraints": (*fixed, window)})))
        if not number and record["config"].get("tune"):
            hybrid = HybridConfig.model_validate(record["config"]).model_copy(update={"tune": False})
        acceptance = record.get("acceptance")
        log.info("window %d of %d, %s%s -> %s", number + 1, len(windows), window,
                 "" if acceptance is None else f": acceptance {acceptance:.2f}", path)
        if acceptance is not None and acceptance < ACCEPTANCE_TOO_LOW:
            log.warning("window %d: the network hardly knows this ground (acceptance %.2f); its frames are few "
                        "configurations", number, acceptance)
        paths.append(path)
        records.append(record)
    return paths, records


def _with_starts_of(molecule, fixed, windows):
    """The molecule with a conformer at the centre of every window besides its own: barriers are to be learned too."""
    led = [led_to(molecule, (*fixed, window)) for window in windows]
    return replace(molecule, conformers=np.concatenate([molecule.conformers, *[m.conformers[:1] for m in led]]),
                   conformer_energies=np.concatenate([molecule.conformer_energies,
                                                      *[m.conformer_energies[:1] for m in led]]))
