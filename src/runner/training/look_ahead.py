"""What bilevel weightings compute before a step: losses and gradients on held-out examples and at moved parameters.

Nothing of it is left behind: the parameters are restored to the bit, BatchNorm and other buffers keep their values,
`.grad` is not touched, and the step draws the random numbers that it would have drawn. Every forward pass of a look
ahead draws the same ones as the first pass of the step, so that differences are those of the parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from runner.config.build import build
from runner.mixtures.stream import Stream
from runner.randomness import rng_state
from runner.training.assemble import Parts
from runner.training.checkpoints import Loaded
from runner.training.forward import Forward
from runner.training.processes import Processes
from runner.training.second_forward import buffers_kept, random_replayed
from runner.types import Batch
from runner.weighting.base import Weighting
from runner.weighting.bilevel import Examples
from runner.weighting.engine import Engine

_SALT = 0x1EAD
"""Added to the seed: held-out examples of the training split come in another order than those of the steps."""


class LookAhead:
    """`runner.weighting.base.LookAhead` for a training run; see `of`.

    Args:
        weighting: the bilevel method.
        forward: as in the steps.
        model: whose buffers to keep; `forward.model` without compilation.
        engine: for the parameters, the reduction over ranks and the loss scale.
        stream: of held-out examples.
    """

    def __init__(
        self, weighting: Weighting, forward: Forward, model: nn.Module, engine: Engine, stream: Stream
    ) -> None:
        self.weighting, self.forward, self.model, self.engine, self.stream = weighting, forward, model, engine, stream
        self.batches: Iterator | None = None
        self.state: dict[str, Any] = dict(stream.state)
        self.lr, self.epoch = 0.0, 0

    @classmethod
    def of(
        cls,
        weighting: Weighting,
        config: Mapping[str, Any],
        forward: Forward,
        model: nn.Module,
        engine: Engine,
        processes: Processes,
        accumulation: int,
        parts: Parts,
        loaded: Loaded | None,
    ) -> LookAhead | None:
        """The one of a run, or None where the weighting does not look ahead.

        Args:
            config: the frozen configuration. accumulation: micro-batches of a step. parts: for the data sets.
            loaded: the checkpoint to go on from.
        """
        split = weighting.look_ahead_on
        if split is None:
            return None
        datasets, trainer = parts.mixture.datasets(split), config["trainer"]
        sampler = build(config["sampler"], {name: len(d) for name, d in datasets.items()}, where="sampler")
        stream = Stream(
            datasets,
            sampler,
            batch_size=trainer["batch_size"],
            accumulation=accumulation,
            rank=processes.rank,
            world_size=processes.count,
            seed=config["seed"] + _SALT,
            num_workers=trainer["num_workers"],
            pad_token_id=parts.inputs.pad_token_id,
            pin_memory=processes.device.type == "cuda",
            start=loaded.state["held_out"] if loaded is not None else None,
        )
        return cls(weighting, forward, model, engine, stream)

    def step(self, micro_batches: list[Batch], counts: Tensor, lr: float, epoch: int) -> None:
        """Let the weighting look ahead of a step.

        Args:
            micro_batches: of the step, this rank's. counts: (M, K) of their labels over all ranks.
            lr: the model's learning rate. epoch: epochs that have ended.
        """
        if self.batches is None:
            self.batches = iter(self.stream)
        held_out, self.state = next(self.batches)
        self.lr, self.epoch = lr, epoch
        more = self.engine.reduce(label_counts(held_out, self.forward.tasks).to(self.engine.device))
        self.examples = {"train": micro_batches, "held_out": held_out}
        self.counts = {"train": counts.sum(0).double().cpu(), "held_out": more.sum(0).double().cpu()}
        self.rng = rng_state()
        self.weighting.look_ahead(self)
        self.examples = {}

    def close(self) -> None:
        """End the worker processes."""
        self.stream.close()

    # ---- what a weighting asks ------------------------------------------------------------------------------------

    def present(self, examples: Examples) -> Tensor:
        """(k,) int64 on the device."""
        return (self.counts[examples] > 0).nonzero().flatten().to(self.engine.device)

    def losses(self, examples: Examples, at: Tensor | None = None) -> Tensor:
        """(k,) float32."""
        total = self._zeros()
        with torch.no_grad(), self._undone(at):
            for batch in self.examples[examples]:
                for k, loss in self._losses(examples, batch).items():
                    total[k] += loss.double()
        return self._global(examples, total)

    def gradients(self, examples: Examples, at: Tensor | None = None) -> Tensor:
        """(k, P) float32."""
        position = {k: n for n, k in enumerate(self.present(examples).tolist())}
        grads_kP = torch.zeros(len(position), self._size(), device=self.engine.device)
        with self._undone(at):
            for batch in self.examples[examples]:
                losses = {k: loss for k, loss in self._losses(examples, batch).items() if loss.requires_grad}
                for n, (k, loss) in enumerate(losses.items()):
                    self._add(grads_kP[position[k]], loss, retain=n + 1 < len(losses))
        return self.engine.reduce(grads_kP).div_(self.engine.loss_scale())

    def gradient(self, examples: Examples, weights: Tensor, at: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(P,) and (k,), float32."""
        position = {k: n for n, k in enumerate(self.present(examples).tolist())}
        grad_P, total = torch.zeros(self._size(), device=self.engine.device), self._zeros()
        with self._undone(at):
            for batch in self.examples[examples]:
                losses = self._losses(examples, batch)
                for k, loss in losses.items():
                    total[k] += loss.detach().double()
                terms = [weights[position[k]].detach() * loss for k, loss in losses.items() if loss.requires_grad]
                if terms:
                    self._add(grad_P, torch.stack(terms).sum(), retain=False)
        return self.engine.reduce(grad_P).div_(self.engine.loss_scale()), self._global(examples, total)

    # ---- how ------------------------------------------------------------------------------------------------------

    def _losses(self, examples: Examples, batch: Batch) -> dict[int, Tensor]:
        """Position of a task → this micro-batch's part of its loss."""
        sums, counts = self.forward.loss_sums(batch), self.counts[examples]
        names = self.engine.tasks
        return {
            k: sums[name].float() / counts[k].item() for k, name in enumerate(names) if name in sums and counts[k] > 0
        }

    def _add(self, into_P: Tensor, loss: Tensor, retain: bool) -> None:
        parameters = self.engine.parameters
        grads = torch.autograd.grad(loss * self.engine.loss_scale(), parameters, retain_graph=retain, allow_unused=True)
        parts = into_P.split([p.numel() for p in parameters])
        for part, parameter, grad in zip(parts, parameters, grads, strict=True):
            if grad is not None:
                part.view_as(parameter).add_(grad)

    @contextmanager
    def _undone(self, at: Tensor | None) -> Iterator[None]:
        """Move the parameters by `at`, and take everything back afterwards."""
        parameters = self.engine.parameters
        saved = None if at is None else [p.detach().clone() for p in parameters]
        with buffers_kept(self.model), random_replayed(self.rng):
            try:
                if at is not None:
                    with torch.no_grad():
                        for parameter, part in zip(parameters, at.split([p.numel() for p in parameters]), strict=True):
                            parameter.add_(part.view_as(parameter))
                yield
            finally:
                if saved is not None:
                    with torch.no_grad():
                        for parameter, value in zip(parameters, saved, strict=True):
                            parameter.copy_(value)

    def _global(self, examples: Examples, total: Tensor) -> Tensor:
        return self.engine.reduce(total)[self.present(examples)].float()

    def _zeros(self) -> Tensor:
        return torch.zeros(len(self.engine.tasks), dtype=torch.float64, device=self.engine.device)

    def _size(self) -> int:
        return sum(p.numel() for p in self.engine.parameters)


def label_counts(micro_batches: list[Batch], tasks: Mapping[str, Any]) -> torch.Tensor:
    """(M, K) labelled elements of this rank's micro-batches, float64; where the targets lie, so that nobody waits."""
    none = torch.zeros((), dtype=torch.float64)

    def counted(batch: Batch, name: str) -> torch.Tensor:
        found = [tasks[name].loss_count(group.targets[name]) for group in batch if name in group.targets]
        return torch.stack(found).double().sum() if found else none

    counts = [counted(batch, name) for batch in micro_batches for name in tasks]
    device = next((count.device for count in counts if count is not none), none.device)
    return torch.stack([count.to(device) for count in counts]).view(len(micro_batches), len(tasks))
