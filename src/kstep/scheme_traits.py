"""What a scheme needs and promises, so that others ask for that and never for its name.

A scheme's class carries its traits (kstep.schemes); a run writes them into its metadata under
"scheme_traits", where analysis and reports read them without importing a scheme.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any


@dataclass(frozen=True)
class SchemeTraits:
    """The facts about a scheme that settings, cost, tables, report, benchmark and advice ask.

    head: what it needs of a network: "energy" (a conservative force), "jump", or None for no network.
    keeps_velocities: velocities follow the dynamics, so that drift, spectra and rates are defined.
    sets_temperature: it draws its own momenta, so that no thermostat goes around it.
    can_refuse: a proposal may go back, so that time covered counts by the acceptance.
    has_identity: delta_H of every proposal is recorded, NaN where a wall refused it untested or a start was left
        untested, infinite where the truth had no number, and <exp(-beta dH)> over the others is 1.
    ensemble: what its positions follow: "true", "network" or "none" (nothing is promised).
    needs_forces: it settles on true forces; one that does not asks for them only to keep them.
    warm_start: a true SCF may begin where the replica's last one ended; not where the force must be the same both ways.
    explores: between true calls it makes many moves on the network alone, which judges them itself.
    counters: {key of the tally: what it counts}, for tables and reports.
    """

    head: str | None
    keeps_velocities: bool = True
    sets_temperature: bool = False
    can_refuse: bool = False
    has_identity: bool = False
    ensemble: str = "true"
    needs_forces: bool = True
    warm_start: bool = True
    explores: bool = False
    counters: Mapping[str, str] = field(default_factory=dict)

    @property
    def needs_network(self) -> bool:
        """Whether it goes nowhere without a network; one that needs none is a control."""
        return self.head is not None

    @property
    def jumps(self) -> bool:
        """Whether the network goes over k timesteps at once, which its propagator does without what it learned too."""
        return self.head == "jump"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a run's metadata."""
        return {**asdict(self), "counters": dict(self.counters)}


_JUMP_COUNTERS = {"refused_jumps": "jumps refused", "plain_steps": "timesteps done by plain dynamics"}

# Runs written before traits were stored know the name of their scheme alone.
_BEFORE_TRAITS = {
    "plain": SchemeTraits(None),
    "metropolis": SchemeTraits("energy", keeps_velocities=False, sets_temperature=True, can_refuse=True,
                               has_identity=True, needs_forces=False),
    "impulse": SchemeTraits("energy", warm_start=False),
    "checked": SchemeTraits("energy", ensemble="network"),
    "jump": SchemeTraits("jump", ensemble="none", counters=_JUMP_COUNTERS),
}


def traits_of(metadata: Mapping[str, Any]) -> SchemeTraits:
    """The traits of the scheme that wrote a file with this metadata; of an unknown one nothing is promised."""
    stored = metadata.get("scheme_traits")
    if stored is None:
        return _BEFORE_TRAITS.get(str(metadata.get("scheme", "plain")), SchemeTraits("energy", ensemble="none"))
    known = {f.name for f in fields(SchemeTraits)}
    traits = SchemeTraits(**{key: value for key, value in stored.items() if key in known})
    # what restraints drive is not the molecule's own motion
    return replace(traits, keeps_velocities=False) if metadata.get("restraints") else traits
