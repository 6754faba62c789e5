"""Rep-MTL: task saliencies at the shared representation, kept distinct per task and aligned per example."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from runner.config.kinds import NonNegativeFloat, PositiveFloat
from runner.errors import UserError
from runner.randomness import rng_state
from runner.training.second_forward import buffers_kept, random_replayed
from runner.training.wrappers.base import Surroundings, Wrapper, plain_gradients
from runner.training.wrappers.features import FeatureTap, by_position, candidates
from runner.types import Batch, Features
from runner.weighting.base import Weighting
from runner.weighting.step import StepReport, set_grad

TINY = 1e-12


@dataclass
class Saliency:
    """What a micro-batch says of its saliencies, over the examples of groups with two or more tasks.

    Attributes:
        losses: task → loss sum, with its graph.
        anchors_BCK: spatial mean of every task's saliency, 0 for tasks without a label; each example's largest
            saliency has length 1. None where no group counts.
        entropy: scalar, Σ_b mean over positions of the entropy over tasks.
        positive: scalar, Σ_b mean over tasks of sim(anchor, affinity).
    """

    losses: dict[str, Tensor]
    anchors_BCK: Tensor | None
    entropy: Tensor
    positive: Tensor


class RepMTL(Wrapper):
    """Adds λ_tsr L_tsr + λ_csa L_csa to whatever the weighting makes of the losses (Wang, Li and Xu 2025).

    With the saliency S_t = ∂L_t/∂Z at the shared representation Z (arXiv 2507.21049, equations 3 to 10):

        P_it = |S̄_it| / Σ_k |S̄_ik|,  S̄ the mean over channels      L_tsr = mean over positions i of -Σ_t P_it log P_it
        M_bt = S_bt S_btᵀ,  Â_b = A_b A_bᵀ,  A_b (C, T) the mean of S_b over positions
        L_csa = mean over examples b of mean over tasks t of -log [exp(cos(Â_b, M_bt)/τ) / Σ_{k≠b} exp(cos(Â_b, Â_k)/τ)]

    Both are minimised, as the paper has it: high entropy over tasks counts as sharing too much, and penalising it makes
    every position serve few tasks. The authors' repository (Jacky1128/Rep-MTL) has held no code so far that would say
    what the equations leave open. S is not detached here: the penalties would have no gradient at all.

    Both depend on the weights through S, so gradients are taken through the heads twice. Z is the coarsest level of the
    pyramid that two tasks of a group read, else the tokens, else the pooled vector. Only groups with labels for two or
    more tasks count. The examples of the whole step are one another's negatives, however it was split: with
    micro-batches, a first pass finds all anchors.

    Args:
        lambda_tsr, lambda_csa: the authors tune both over 0.7 … 1.5. temperature: τ, which the paper does not state.
    """

    second_derivatives: ClassVar[bool] = True

    def __init__(
        self,
        weighting: Weighting,
        *,
        lambda_tsr: NonNegativeFloat = 0.9,
        lambda_csa: NonNegativeFloat = 0.9,
        temperature: PositiveFloat = 1.0,
    ) -> None:
        super().__init__(weighting)
        self.lambda_tsr, self.lambda_csa, self.temperature = lambda_tsr, lambda_csa, temperature

    def attach(self, around: Surroundings) -> None:
        super().attach(around)
        self._tap = FeatureTap(around.model, "rep_mtl")

    def gradients(self, micro_batches: Sequence[Batch], counts: Tensor, step: int, per_epoch: int) -> StepReport:
        around, engine = self.around, self.around.engine
        counted = sum(len(g) for batch in micro_batches for g in batch if len(g.targets) > 1)
        total = int(around.reduce(torch.tensor(float(counted), device=engine.device)))
        if total == 0:
            return plain_gradients(engine, around.forward, micro_batches, counts, step, per_epoch)
        engine.begin(counts, step, per_epoch)
        held: Saliency | None = None
        if len(micro_batches) == 1:
            held = self._look(micro_batches[0], graph=True)
            looks = [held.anchors_BCK]
        else:
            with buffers_kept(around.model), random_replayed(rng_state()):
                looks = [self._look(batch, graph=False).anchors_BCK for batch in micro_batches]
        pulls = self._pulls(looks, total)
        extra: list[Tensor | None] = [None] * len(engine.parameters)
        for batch, pull_BCK in zip(micro_batches, pulls, strict=True):
            look = held or self._look(batch, graph=True)
            if look.anchors_BCK is not None:
                term = self.lambda_tsr * look.entropy
                if pull_BCK is not None:
                    term = term + self.lambda_csa * ((pull_BCK * look.anchors_BCK).sum() - look.positive)
                self._add(extra, term * (engine.scale / total))
            engine.backward(look.losses)
        report = engine.finish()
        self._add_to_gradients(extra)
        return report

    # ---- saliencies -------------------------------------------------------------------------------------------------

    def _look(self, batch: Batch, graph: bool) -> Saliency:
        """Forward pass of a micro-batch; `graph`: whether what is found can be differentiated."""
        engine = self.around.engine
        with self._tap.watching() as seen:
            sums = self.around.forward.loss_sums(batch)
        options = [candidates(features) for features in seen]
        flat = [z for zs in options for z in zs]
        found: dict[int, list[Tensor | None]] = {}
        names = [name for name in engine.tasks if name in sums]
        for n, name in enumerate(names):
            k = engine.tasks.index(name)
            loss = sums[name].float() / engine.counts[k].item() * engine.scale
            last = n + 1 == len(names) and not graph
            grads = torch.autograd.grad(loss, flat, create_graph=graph, retain_graph=not last, allow_unused=True)
            found[k] = list(grads)
        zero = torch.zeros((), device=engine.device)
        anchors: list[Tensor] = []
        entropy, positive, offset = zero, zero, 0
        for group, features, zs in zip(batch, seen, options, strict=True):
            mine = {k: grads[offset : offset + len(zs)] for k, grads in found.items()}
            offset += len(zs)
            tasks = [k for k in mine if engine.tasks[k] in group.targets]
            at = next((i for i in range(len(zs)) if sum(mine[k][i] is not None for k in tasks) > 1), None)
            if len(tasks) > 1 and at is not None:
                saliency_KBCN = self._stack(mine, tasks, at, zs[at])
                part, similar, anchor_BCK = self._measure(saliency_KBCN / engine.scale, _positions(features, zs[at]))
                entropy, positive = entropy + part, positive + similar
                anchors.append(anchor_BCK)
        if len({a.shape[1] for a in anchors}) > 1:
            raise UserError(
                "wrapper=rep_mtl compares examples at one representation, but the tasks of this mixture read several",
                "keep tasks of one kind: tasks=[…], or wrapper=none",
            )
        return Saliency(sums, torch.cat(anchors) if anchors else None, entropy, positive)

    def _stack(self, grads: dict[int, list[Tensor | None]], tasks: list[int], at: int, z: Tensor) -> Tensor:
        rows: list[Tensor] = []
        for k in range(len(self.task_names)):
            grad = grads[k][at] if k in tasks else None
            rows.append(by_position(grad if grad is not None else torch.zeros_like(z)).float())
        return torch.stack(rows)

    def _measure(self, saliency_KBCN: Tensor, positions_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Entropy and positive similarity, summed over examples, and the anchors (B, C, K).

        Cosines do not change with the length of a saliency, but its fourth power leaves float32: saliencies are divided
        by their (constant) lengths first.
        """
        mean_KBN = saliency_KBCN.mean(2).abs()
        share_KBN = mean_KBN / mean_KBN.sum(0).clamp_min(torch.finfo(torch.float32).tiny)
        entropy = -(share_KBN * share_KBN.clamp_min(TINY).log()).sum((0, 2)) / positions_B
        length_KB = saliency_KBCN.detach().flatten(2).norm(dim=2)
        there_KB = length_KB > 0
        largest_B = length_KB.amax(0).clamp_min(torch.finfo(torch.float32).tiny)
        anchor_BCK = (saliency_KBCN / largest_B[None, :, None, None]).sum(3).permute(1, 2, 0) / positions_B[
            :, None, None
        ]
        unit_KBCN = saliency_KBCN / torch.where(there_KB, length_KB, 1.0)[:, :, None, None]
        cross_KBTN = torch.einsum("bct,kbcn->kbtn", anchor_BCK / _size(anchor_BCK), unit_KBCN)
        affinity_KB = _gram_norm(unit_KBCN).clamp_min(TINY)
        cosine_KB = cross_KBTN.square().sum((2, 3)) / (affinity_KB * _gram_norm(anchor_BCK / _size(anchor_BCK)))
        cosine_KB = torch.where(there_KB, cosine_KB, 0.0)
        positive = (cosine_KB.sum(0) / there_KB.sum(0).clamp_min(1)).sum() / self.temperature
        return entropy.sum(), positive, anchor_BCK

    # ---- the whole step ---------------------------------------------------------------------------------------------

    def _pulls(self, looks: Sequence[Tensor | None], total: int) -> list[Tensor | None]:
        """∂/∂A of Σ_b log Σ_{k≠b} exp(cos(Â_b, Â_k)/τ) for each micro-batch's anchors; None where there is nothing."""
        if total < 2 or self.lambda_csa == 0:
            return [None] * len(looks)
        around = self.around
        own = [look.detach() for look in looks if look is not None]
        local_NCK = torch.cat(own)
        everywhere = local_NCK.new_zeros(around.world_size, *local_NCK.shape)
        everywhere[around.rank] = local_NCK
        with torch.enable_grad():
            every_NCK = around.reduce(everywhere).flatten(0, 1).requires_grad_()
            scaled_NCK = every_NCK / _size(every_NCK.detach())
            norm_N = _gram_norm(scaled_NCK).clamp_min(TINY)
            cosine_NN = torch.einsum("ack,bcl->abkl", scaled_NCK, scaled_NCK).square().sum((2, 3)) / (
                norm_N[:, None] * norm_N
            )
            others = ~torch.eye(len(norm_N), dtype=torch.bool, device=norm_N.device)
            logits_NN = (cosine_NN / self.temperature).masked_fill(~others, float("-inf"))
            (pull_NCK,) = torch.autograd.grad(logits_NN.logsumexp(1).sum(), every_NCK)
        mine = iter(pull_NCK.chunk(around.world_size)[around.rank].split([len(a) for a in own]))
        return [None if look is None else next(mine) for look in looks]

    def _add(self, extra: list[Tensor | None], term: Tensor) -> None:
        if not term.requires_grad:
            return
        grads = torch.autograd.grad(term, self.around.engine.parameters, retain_graph=True, allow_unused=True)
        for i, grad in enumerate(grads):
            if grad is not None:
                before = extra[i]
                extra[i] = grad if before is None else before + grad

    def _add_to_gradients(self, extra: list[Tensor | None]) -> None:
        """Sum over processes, and add to what the engine has left."""
        engine, around = self.around.engine, self.around
        reached = engine.reach.of(engine.present)
        if around.world_size > 1:
            flat = torch.cat(
                [
                    (extra[i] if extra[i] is not None else torch.zeros_like(engine.parameters[i])).reshape(-1)  # type: ignore[union-attr]
                    for i in reached
                ]
            )
            parts = around.reduce(flat).split([engine.parameters[i].numel() for i in reached])
            for i, part in zip(reached, parts, strict=True):
                extra[i] = part.view_as(engine.parameters[i])
        for i in reached:
            parameter, grad = engine.parameters[i], extra[i]
            if grad is not None:
                set_grad(parameter, grad if parameter.grad is None else parameter.grad + grad)


def _positions(features: Features, z: Tensor) -> Tensor:
    """(B,) number of real positions of each example."""
    if z.ndim == 3 and features.mask is not None:
        return features.mask.sum(1).float()
    count = by_position(z).shape[2]
    return torch.full((len(z),), float(count), device=z.device)


def _size(x_BCK: Tensor) -> Tensor:
    """(B, 1, 1) constant lengths, 1 where there is nothing."""
    norm = x_BCK.detach().flatten(1).norm(dim=1)
    return torch.where(norm > 0, norm, 1.0)[:, None, None]


def _gram_norm(x: Tensor) -> Tensor:
    """‖X Xᵀ‖_F over the last two dimensions, from the smaller of the two Gram matrices."""
    gram = x @ x.mT if x.shape[-2] <= x.shape[-1] else x.mT @ x
    return gram.square().sum((-2, -1)).clamp_min(TINY**2).sqrt()
