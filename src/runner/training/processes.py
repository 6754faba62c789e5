"""The processes of one run, through Accelerate: device, precision, and sums over ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from runner.errors import UserError
from runner.weighting.step import Reduce, identity


@dataclass
class Processes:
    """This process among the others.

    Attributes:
        reduce: sum of a tensor over all ranks, in place.
    """

    accelerator: Accelerator
    device: torch.device
    rank: int
    count: int
    reduce: Reduce

    @classmethod
    def start(cls, launch: Mapping[str, Any], precision: str) -> Processes:
        """Join the process group (gloo on CPU, NCCL on GPUs) and choose the device.

        Raises:
            UserError: a GPU was asked for and there is none, or fp16 on a CPU.
        """
        gpu = torch.cuda.is_available()
        if launch["device"] == "cuda" and not gpu:
            raise UserError("launch.device=cuda, but torch finds no GPU here", "launch.device=auto", "runner doctor")
        on_cpu = launch["device"] == "cpu" or not gpu
        if precision == "fp16" and on_cpu:
            raise UserError(
                "trainer.precision=fp16 needs a GPU", "use trainer.precision=bf16 or fp32 on a CPU", "runner doctor"
            )
        if launch.get("threads"):
            torch.set_num_threads(launch["threads"])
        accelerator = Accelerator(cpu=on_cpu, mixed_precision={"fp32": "no", "bf16": "bf16", "fp16": "fp16"}[precision])
        count = accelerator.num_processes

        def all_reduce(tensor: Tensor) -> Tensor:
            torch.distributed.all_reduce(tensor)
            return tensor

        return cls(
            accelerator, accelerator.device, accelerator.process_index, count, all_reduce if count > 1 else identity
        )

    @property
    def main(self) -> bool:
        """Whether this rank writes the files."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether any rank says so: ranks must leave the loop together."""
        if self.count == 1:
            return flag
        return bool(self.reduce(torch.tensor(float(flag), device=self.device)) > 0)

    def gather(self, items: list[Any]) -> list[Any]:
        """The lists of all ranks, joined."""
        return list(gather_object(items))

    def broadcast(self, model: nn.Module) -> None:
        """Give every rank the weights of rank 0."""
        if self.count > 1:
            for tensor in (*model.parameters(), *model.buffers()):
                torch.distributed.broadcast(tensor.detach(), src=0)

    def share_buffers(self, model: nn.Module) -> None:
        """Give every rank the buffers of rank 0, which are those that a checkpoint holds.

        BatchNorm's running statistics come from each rank's own examples. Training does not read them, evaluation does.
        """
        if self.count > 1:
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, src=0)

    def end(self, together: bool) -> None:
        """Last call of a rank.

        Args:
            together: all ranks end well: wait for the last, so that none leaves while another still talks to it. Not
                so after an error, which the others may not have met.
        """
        if self.count > 1 and together:
            self.accelerator.wait_for_everyone()
