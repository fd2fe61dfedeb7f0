"""The numbers that a run is judged by: each an object in a file of its own, and here the list of them all.

Read `metric` first (what a metric is), then `cells` (how it reads in a table) and any of the others.  `METRICS` is the
order of the tables; judge.compare computes them, show.tables, the page and the benchmark show them.
"""

from __future__ import annotations

from kstep.analysis.metrics.bonds_and_angles import ANGLE_ERROR, BOND_ERROR
from kstep.analysis.metrics.certificate import CERTIFICATE
from kstep.analysis.metrics.cost import COST
from kstep.analysis.metrics.distributions import ANGLE_JS, ANGLE_W1, BOND_JS, BOND_W1, TORSION_JS, TORSION_W1
from kstep.analysis.metrics.drift import DRIFT
from kstep.analysis.metrics.frame_weights import WEIGHTS
from kstep.analysis.metrics.kinetic_energy import KINETIC_ENERGY
from kstep.analysis.metrics.metric import Metric
from kstep.analysis.metrics.pair_distances import PAIR_DISTANCES
from kstep.analysis.metrics.potential_energy import POTENTIAL_ENERGY
from kstep.analysis.metrics.proposals import PROPOSALS
from kstep.analysis.metrics.sampling import SAMPLING
from kstep.analysis.metrics.stretches import STRETCHES
from kstep.analysis.metrics.temperature import TEMPERATURE
from kstep.analysis.metrics.torsions import TORSIONS

METRICS: tuple[Metric, ...] = (
    BOND_ERROR, ANGLE_ERROR, BOND_W1, ANGLE_W1, TORSION_W1, BOND_JS, ANGLE_JS, TORSION_JS, PAIR_DISTANCES,
    POTENTIAL_ENERGY,
    DRIFT, STRETCHES, PROPOSALS, WEIGHTS, CERTIFICATE, TEMPERATURE, KINETIC_ENERGY, SAMPLING, COST, TORSIONS,
)
