"""A trained network as dynamics sees it: arrays in, arrays out, and no torch in its interface.

Inner velocity Verlet runs on whatever array `native` returns (numpy, or torch on a device, in the order
of axes that suits the way the network is computed, kstep/models/execution.py), always in float64.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from kstep.errors import UserError
from kstep.models import checkpoint as checkpoints
from kstep.models.batch import MoleculeBatch, replicate
from kstep.models.execution import BUILDERS
from kstep.units import PS_PER_FS


class Network:
    """Energy, conservative forces and jumps of R replicas of one molecule.

    metadata: k_steps, dt_fs, spans, method, true_calls_training, data_sha256, arch, heads and so
    on; spans: jump lengths in timesteps the jump head was trained on, longest first.
    """

    def __init__(self, model: torch.nn.Module, numbers, masses, bonds, *, metadata: dict,
                 device: str = "cpu", delta_scale: float = 1.0, inner: str | None = None,
                 rows: int | None = None):
        """inner: the way forces are computed (kstep/models/execution.py); None: the first of the model's ways.

        rows: replicas that `compiled` is compiled for.
        """
        inner = inner or model.ways[0]
        self.device = "cpu" if inner == "numpy" else device
        self.model = model.to(self.device).eval()
        self.model.requires_grad_(False)
        self.metadata = metadata
        self.spans = list(metadata["spans"])
        self.delta_scale = float(delta_scale)
        self._static = (np.asarray(numbers), np.asarray(masses, dtype=float), np.asarray(bonds))
        self._batches: dict[int, MoleculeBatch] = {}
        self._energy_and_forces = BUILDERS[inner](self.model, self._static, self.device, rows)

    @classmethod
    def load(cls, checkpoint_path: str | Path, numbers, masses, bonds, *, device: str = "cpu",
             delta_scale: float = 1.0, dt_fs: float | None = None, k_steps: int | None = None,
             method: str | None = None, inner: str | None = None, rows: int | None = None) -> Network:
        """Read a checkpoint for a molecule: numbers (N,), masses (N,) Da, bonds (B,2).

        dt_fs, k_steps, method: what the run will use, where it must be what the network was
        trained on (always for the jump head; an energy network serves any k and dt).  Raises
        UserError when the checkpoint does not fit.
        """
        checkpoint = checkpoints.load(checkpoint_path)
        checkpoints.check_fits(checkpoint, checkpoint_path, numbers, bonds, dt_fs=dt_fs,
                               k_steps=k_steps, method=method)
        model = checkpoints.model_from(checkpoint, checkpoint_path)
        hidden = {"state_dict", "normalisation", "training", "molecule"}
        metadata = {key: value for key, value in checkpoint.items() if key not in hidden}
        metadata["arch"] = checkpoint["config"]["arch"]
        return cls(model, numbers, masses, bonds, metadata=metadata, device=device, delta_scale=delta_scale,
                   inner=inner, rows=rows)

    def native(self, array: np.ndarray):
        """(R,N,3) float64 as the array `forces` takes."""
        return self._energy_and_forces.native(np.array(array, dtype=np.float64))

    def numpy(self, native) -> np.ndarray:
        """A native array back as numpy float64."""
        return self._energy_and_forces.numpy(native)

    def forces(self, x):
        """Conservative forces kJ/mol/nm at positions nm, both native, times delta_scale."""
        forces = self._energy_and_forces.forces(x)
        return forces if self.delta_scale == 1.0 else forces * self.delta_scale

    def energy_and_forces(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Energy (R,) kJ/mol and forces (R,N,3) kJ/mol/nm at x (R,N,3) nm, times delta_scale."""
        energy, forces = (self.numpy(a) for a in self._energy_and_forces(self.native(x)))
        return energy * self.delta_scale, forces * self.delta_scale

    def jump(self, x: np.ndarray, v: np.ndarray, f_true: np.ndarray, span) -> tuple[np.ndarray, np.ndarray]:
        """Positions `span` timesteps on and velocities half a step before: (R,N,3) nm, nm/ps.

        x, v, f_true (R,N,3) at the start; span (R,) or one number of timesteps.
        """
        if not self.model.config.heads.jump:
            raise UserError("this checkpoint has no jump head; train a model with heads: {jump: true}")
        n_replicas = len(x)
        batch = self._batch(n_replicas)
        flat = [torch.as_tensor(a, dtype=torch.float64, device=self.device).reshape(-1, 3) for a in (x, v, f_true)]
        batch.positions, batch.velocities, batch.forces = flat
        span = np.broadcast_to(np.asarray(span), (n_replicas,))
        batch.tau_ps = torch.as_tensor(span * self.metadata["dt_fs"] * PS_PER_FS, dtype=torch.float64,
                                       device=self.device)
        with torch.no_grad():
            x_k, v_half = self.model.jump(batch, delta_scale=self.delta_scale)
        return self.numpy(x_k).reshape(x.shape), self.numpy(v_half).reshape(x.shape)

    def _batch(self, n_replicas: int) -> MoleculeBatch:
        if n_replicas not in self._batches:
            batch = replicate(*self._static, n_replicas, device=self.device)
            batch.layout = self.model.layout(batch, False)  # one call per true call: not worth a choice
            self._batches[n_replicas] = batch
        return self._batches[n_replicas]
