"""configs/model.yaml: which network is built and how large it is."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from kstep.config import Config, Number, Positive
from kstep.errors import did_you_mean
from kstep.models import REGISTRY, network_class

Width = Annotated[int, Field(ge=1, le=8192), Number]  # far beyond what a molecule needs, far below the memory
Cutoff = Annotated[float, Field(ge=0.1, le=10), Number]  # nm; below 0.1 no atom sees another


class Heads(Config):
    """Which predictions the network makes."""

    energy: bool = True
    jump: bool = False


class ModelConfig(Config):
    """The network of configs/model.yaml; keys of the other architectures are ignored by design."""

    arch: str = "egnn"  # a key of kstep.models.REGISTRY
    heads: Heads = Heads()
    elements: list[Annotated[int, Field(ge=1, le=118)]] = [1, 6, 7, 8, 9, 15, 16, 17, 35, 53]
    activation: Literal["silu", "gelu", "softplus"] = "silu"  # all smooth: energies are C2

    # egnn, transformer_egnn
    hidden_dim: Width = 32  # scalar channels per atom
    vector_dim: Width = 16  # vector channels per atom
    num_layers: Annotated[int, Field(ge=1, le=100), Number] = 3
    cutoff_nm: Cutoff = 0.4
    num_rbf: Width = 16
    use_force_head: bool = False  # direct force head beside the conservative one

    # transformer_egnn
    attention_heads: Annotated[int, Field(ge=1, le=1024), Number] = 4
    feedforward_dim: Width = 64
    dropout: Annotated[float, Field(ge=0, lt=1), Number] = 0.0  # while training; never in dynamics
    max_bond_distance: Annotated[int, Field(ge=1, le=100), Number] = 4  # bonds; further is "far"

    # jump head
    propagator: Literal["auto", "taylor", "bounded"] = "bounded"
    spring_cutoff_nm: Cutoff = 0.35  # pairs that carry a spring in the bounded propagator
    max_disp_nm: Positive = 0.05  # hard bound on the learned displacement per atom

    # pair_mlp
    pair_hidden: Annotated[list[Width], Field(min_length=1)] = [192, 192]

    @field_validator("arch")
    @classmethod
    def _known(cls, arch: str) -> str:
        if arch not in REGISTRY:
            raise ValueError(f"there is no such network{did_you_mean(arch, REGISTRY)}")
        return arch

    @property
    def network_class(self):
        """What `arch` names; its class attributes say what it can do (kstep/models/__init__.py)."""
        return network_class(self.arch)
