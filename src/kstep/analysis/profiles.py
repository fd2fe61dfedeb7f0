"""Free energies of runs: files in, files and numbers out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kstep.analysis.measure.free_energy import BINS, Coordinate, FreeEnergy, free_energy, rotatable
from kstep.analysis.measure.umbrella import Samples, gather
from kstep.errors import UserError
from kstep.schemas import load_trajectory


def samples_of(paths: Sequence[str | Path]) -> Samples:
    """The frames of one run, of several, or of windows of restraints, as samples without restraints."""
    return gather([load_trajectory(path) for path in paths])


def named(texts: Sequence[str]) -> list[Coordinate]:
    """Coordinates by name, such as "dihedral:0-1-2-3"; UserError for a name that is none."""
    try:
        return [Coordinate.parse(text) for text in texts]
    except ValueError as error:
        raise UserError(str(error)) from None


def profiles(samples: Samples, coordinates: Sequence[Coordinate] = (), *, as_map: bool = False,
             bins: int = BINS) -> list[FreeEnergy]:
    """F along each coordinate (none: the rotatable torsions), or as_map: on the plane of two.

    UserError for a map of other than two, for a molecule that has no torsion to take, and for fewer than two bins.
    """
    if not isinstance(bins, int) or bins < 2:
        raise UserError(f"bins = {bins!r} is no whole number of 2 or more")
    chosen = list(coordinates) or rotatable(samples)
    if as_map:
        if len(chosen) != 2:
            raise UserError(f"a map is of two coordinates, not of {len(chosen)}; name two of --torsion, --angle and "
                            "--distance")
        if chosen[0].kind == chosen[1].kind and chosen[1].atoms in (chosen[0].atoms, chosen[0].atoms[::-1]):
            raise UserError(f"a map of {chosen[0].name} against itself is a line; name another coordinate beside it")
        return [free_energy(samples, *chosen, bins=bins)]
    if not chosen:
        raise UserError(f"{samples.molecule} has no rotatable torsion; name a --torsion, an --angle or a --distance")
    return [free_energy(samples, one, bins=bins) for one in chosen]


def profile_files(paths: Sequence[str | Path], out: Path, coordinates: Sequence[Coordinate] = (), *,
                  as_map: bool = False, bins: int = BINS, overwrite: bool = False) -> list[FreeEnergy]:
    """`profiles` of files, each written into the folder `out` as JSON, CSV and PNG (show.free_energy.write)."""
    from kstep.analysis.show.free_energy import write

    found = profiles(samples_of(paths), coordinates, as_map=as_map, bins=bins)
    for one in found:
        write(one, out, overwrite=overwrite)
    return found
