"""Networks: what every model promises to training and dynamics.

In the order in which it reads best: model_config, batch (a ragged batch of molecules); egnn with its energy_head, the
layers of its messages and the pairs they run along, dense or a radius_graph; jump_head with its propagator;
transformer_egnn with its attention and bond_graph; pair_mlp with its gradient, by hand (pair_mlp_gradient) and in numpy
(pair_mlp_numpy); symmetry (what no network may notice); checkpoint (files); execution (ways to compute forces, timed)
and network (what dynamics sees).

A model is a torch module over `MoleculeBatch` (kstep/models/batch.py).  It computes in the
dtype of its parameters, whatever the dtype of the batch, and returns energies, positions and
velocities in the dtype of the batch: float32 weights add a float32 correction to float64 positions.

    model = build_model(config, molecule)      of the class REGISTRY[config.arch]
    model.config                               the ModelConfig it was built from
    model.elements (E,) int64 buffer           atomic numbers it knows; others raise UserError
    model.dt_ps () float64 buffer              baseline timestep the jump head belongs to
    model.layout(batch, sparse)                what positions do not change, for a batch that is used again; or None

what the class can do, which others ask instead of its name
    bound_to_one_molecule     knows one molecule in one order of its atoms, and is built with its numbers and bonds
    ways                      to compute its forces (execution.py), the ones that cost nothing to try first
    fits_labels               has `features`, `layers`, `energy_and_gradient`, `contact` and `close_in`, which
                              training/label_fit.py works on
    bears_bfloat16            learns under autocast (`amp` of the training)

energy head (config.heads.energy)
    model.energy(batch)              (P,) kJ/mol, absolute: reference energies + learned part
    model.energy_and_forces(batch, create_graph=False)   (P,), (A,3) kJ/mol/nm, exactly -dE/dx
    model.direct_forces(batch)       (A,3) from the optional force head (config.use_force_head)
jump head (config.heads.jump); reads positions, velocities, forces (the true ones), tau_ps
    model.propagate(batch)           (A,3), (A,3): x_k and v_{k-1/2} of the cheap propagator alone
    model.jump(batch, delta_scale=1.0)   x_k nm and v_{k-1/2} nm/ps; delta_scale 0 is `propagate`
  v_{k-1/2} belongs to the time tau - dt/2, k = tau/dt, and the caller closes
  v_k = v_{k-1/2} + (dt/2m) F_true(x_k).  k = 1 with a zero correction is velocity Verlet.

normalisation: registered buffers, so that state_dict carries them
    model.fit_normalisation(statistics)        from the training split, before the first step:
        "elements" (E,)              atomic numbers; a subset of model.elements
        "reference_energy" (E,)      kJ/mol per element, least squares on the energies
        "energy_rms"                 kJ/mol per atom beyond the reference energies (optional)
        "force_rms"                  kJ/mol/nm
        "dt_ps"                      baseline timestep (jump head)
        "tau_ps" (K,)                the jump times in the data, in any order
        "dx_rms" (K,E) "dv_rms" (K,E)   nm and nm/ps: RMS of the true remainders
                                     x_tk - x and v_half - v beyond `model.propagate(batch)` of
                                     the untrained model; per tau and element
      Keys for a head that is not there may be missing.  Order: fit_normalisation with dt_ps and
      force_rms first (propagate needs dt_ps), then propagate, then fit_normalisation with
      tau_ps, dx_rms, dv_rms; each call sets only the keys that it is given.
    model.set_normalisation(buffers)           the same from ready tensors by buffer name
    model.jump_scales(numbers, tau_ps)         (A,1), (A,1): dx_rms and dv_rms of each atom
                                     (tau_ps per atom), what the dx + dv loss divides by
"""

from __future__ import annotations

import pkgutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kstep.models.egnn import EGNN
    from kstep.models.model_config import ModelConfig
    from kstep.models.pair_mlp import PairMLP

REGISTRY = {  # `arch` of a ModelConfig
    "egnn": "kstep.models.egnn:EGNN",
    "transformer_egnn": "kstep.models.transformer_egnn:TransformerEGNN",
    "pair_mlp": "kstep.models.pair_mlp:PairMLP",
}


def network_class(arch: str) -> type[EGNN | PairMLP]:
    """The class of a name of REGISTRY, which its capabilities can be asked of."""
    return pkgutil.resolve_name(REGISTRY[arch])


def build_model(config: ModelConfig, molecule: dict | None = None) -> EGNN | PairMLP:
    """Build the network `config.arch` names.

    `molecule` {"numbers" (N,), "bonds" (B,2)}: needed by networks bound to one molecule, ignored by others.
    """
    kind = config.network_class
    return kind(config, molecule) if kind.bound_to_one_molecule else kind(config)


def names_of(capability: str) -> str:
    """'pair_mlp' for "fits_labels": the architectures that have a capability, for a message."""
    return " or ".join(name for name in REGISTRY if getattr(network_class(name), capability))
