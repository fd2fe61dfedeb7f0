"""configs/train.yaml: how a network is trained; configs/learn.yaml: how one learns while it samples."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kstep.config import Config, Count, NonNegative, Number, Positive, Temperature, Whole

Fraction = Annotated[float, Field(ge=0, lt=1), Number]


class TrainConfig(Config):
    """Optimisation, loss weights and logging; every term is dimensionless before its lambda."""

    batch_size: Count = 128  # windows
    grad_accum: Count = 1  # batches per optimiser step
    lr: Positive = 3.0e-3
    weight_decay: NonNegative = 1.0e-4
    beta2: Annotated[float, Field(gt=0, lt=1), Number] = 0.999  # AdamW's memory of squared gradients
    max_epochs: Count = 300
    warmup_ratio: Fraction = 0.02  # of all steps; then a cosine down to zero
    grad_clip: Positive = 10.0  # norm of the gradient
    ema_decay: Fraction = 0.999  # of the weights that are validated and stored
    patience: Whole = 0  # epochs without a better validation before stopping; 0: never
    max_minutes: Positive | None = None  # stop there although the schedule is not through
    validation_samples: Count = 1000  # fixed subset of the validation split
    exchange_hydrogens: bool = True  # pair_mlp: show methyls, amines, phenyls in every labelling they turn to
    random_rotate_mode: Literal["none", "per_graph", "batch"] = "none"  # for measuring: the networks are equivariant
    amp: bool = False  # bfloat16 autocast; not for pair_mlp
    threads: Annotated[int, Field(ge=0, le=1024), Number] = 1  # torch threads on the CPU; 0: all cores

    lambda_energy: NonNegative = 1.0  # (dE / spread of E)^2
    lambda_force: NonNegative = 10.0  # (dF / rms of F)^2
    lambda_dx: NonNegative = 1.0  # |dx| / rms of the remainder beyond the propagator
    lambda_dv: NonNegative = 1.0
    lambda_angular_momentum: NonNegative = 0.0  # of the landing, per molecule; momentum itself is exact
    # Structure of the landing geometry of the jump head, against the true one:
    lambda_struct_bond: NonNegative = 0.0  # (dr / 0.001 nm)^2
    lambda_struct_angle: NonNegative = 0.0  # (dtheta / 1 degree)^2
    lambda_struct_dihedral: NonNegative = 0.0  # 2 (1 - cos dphi) / (1 degree)^2
    struct_warmup_ratio: Fraction = 0.0  # of all steps, over which the structural weights grow from 0
    uncertainty_weighting: bool = False  # learn the weight of each term beside the network

    # --teacher: the student also learns the geometries its teacher's own dynamics visits
    distill_frames: Whole = 8000
    distill_temperature_K: Temperature = 400.0

    log_interval_steps: Count = 20  # optimiser steps between rows of metrics.jsonl
    checkpoint_interval_steps: Whole = 0  # optimiser steps between step_<n>.pt; 0: none
    wandb: bool = False
    tensorboard: bool = False


class FitConfig(Config):
    """Self-learning: the fit of pair_mlp to the labels of a run (kstep/training/label_fit.py)."""

    fit_passes: Positive = 300.0  # over all labels, in one fit
    fit_batch_size: Count = 64  # labels
    fit_lr: Positive = 1.0e-2  # highest learning rate of AdamW
    fit_weight_decay: NonNegative = 0.2  # of matrices
    fit_beta2: Annotated[float, Field(gt=0, lt=1), Number] = 0.99  # AdamW's memory of squared gradients
    fit_warmup_ratio: Fraction = 0.02  # of all steps; then half a cosine down to zero
    fit_grad_clip: Positive = 10.0  # norm of the gradient
    fit_ema_decay: Fraction = 0.999  # of the weights that come out
    fit_lambda_energy: NonNegative = 1.0  # (dE / spread of E)^2
    fit_lambda_force: NonNegative = 30.0  # (dF / rms of F)^2
    fit_whitening: Annotated[float, Field(ge=0, le=1), Number] = 0.5  # of the features: 0 none, 1 full
    fit_outlier_kT: Positive = 1.0  # energy above the lowest, kT per mode, beyond which a label counts less
    fit_exchange_hydrogens: bool = True  # show methyls, amines, phenyls in every labelling they turn to
