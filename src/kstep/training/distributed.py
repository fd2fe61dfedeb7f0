"""Several processes train one network: `torchrun --nproc_per_node 2 src/04_train.py ...`.

PyTorch's DistributedDataParallel around the objective adds up the gradients (gloo on CPUs, nccl on
GPUs) while the backward pass still runs.  It wraps the loss, not the network: forces are a derivative
taken inside its forward, and it only sees one module that returns one number.  Every process draws
the same epoch and takes each world_size-th window of a batch; terms are weighed by what they average
over (step_plan.py), so that the sum over processes is the loss and the gradient of the whole batch.
Weights, averages and optimisers therefore stay equal everywhere; the first process alone
validates, writes and logs.  What the processes say to each other besides gradients goes over gloo.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from kstep.errors import UserError


@dataclass(frozen=True)
class Group:
    """The processes of one training and this one's place among them; by default it is alone."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def wrap(self, objective: torch.nn.Module) -> torch.nn.Module:
        """The objective whose backward also averages gradients over the processes."""
        if self.size == 1:
            return objective
        # Weights of a head that a loss does not reach have no gradient, here as in a single process.
        return DistributedDataParallel(objective, find_unused_parameters=True, broadcast_buffers=False)

    def apart(self, objective: torch.nn.Module, last: bool):
        """Context of one piece of a step: gradients are exchanged with the last one alone."""
        return nullcontext() if self.size == 1 or last else objective.no_sync()

    def most(self, values: list[float]) -> list[float]:
        """The largest of each value over the processes: what one of them asks for, all do."""
        return self._reduced(values, distributed.ReduceOp.MAX)

    def total(self, values: list[float]) -> list[float]:
        """The sum of each value over the processes."""
        return self._reduced(values, distributed.ReduceOp.SUM)

    def _reduced(self, values, operation):
        if self.size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(tensor, operation)
        return tensor.tolist()

    def told(self, value):
        """What the first process has for `value`."""
        if self.size == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """The first process goes through the block before the others enter it."""
        if self.size > 1 and not self.is_first:
            distributed.barrier()
        yield
        if self.size > 1 and self.is_first:
            distributed.barrier()


ALONE = Group()


@contextmanager
def joined(device: str) -> Iterator[tuple[Group, str]]:
    """The processes torchrun started and this one's device; alone without torchrun.

    Raises UserError for more processes than GPUs, and where another process died.
    """
    if "RANK" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        yield ALONE, device
        return
    local = int(os.environ["LOCAL_RANK"])
    if device == "cuda":
        if local >= torch.cuda.device_count():
            raise UserError(f"torchrun started more processes than the {torch.cuda.device_count()} GPUs here; lower "
                            "--nproc_per_node, or use --device cpu")
        torch.cuda.set_device(local)
        device = f"cuda:{local}"
    distributed.init_process_group("cpu:gloo,cuda:nccl" if device != "cpu" else "gloo")
    group = Group(distributed.get_rank(), distributed.get_world_size())
    try:
        yield group, device
    except RuntimeError as error:
        if isinstance(error, distributed.DistError) or "gloo" in str(error).lower():
            raise UserError(f"process {group.rank} lost another process of this training; that one's message says "
                            "why, and --resume goes on from last.pt") from error
        raise
    # Not after an error: the others may wait in a collective call, from which only torchrun frees them.
    distributed.destroy_process_group()
