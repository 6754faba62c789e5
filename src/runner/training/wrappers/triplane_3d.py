"""The 3D-aware regulariser: every dense task rendered from one tri-plane of the shared features (Li et al. 2024)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner.architectures.heads.resize import upsample
from runner.config.kinds import NonNegativeFloat, PositiveInt
from runner.errors import UserError, suggest
from runner.specs import FeatureSpec, InputSpec
from runner.tasks.base import Task
from runner.training.wrappers.added import AddedLoss
from runner.training.wrappers.base import Surroundings
from runner.training.wrappers.features import FeatureTap
from runner.types import Batch, Features
from runner.weighting.base import Weighting


class TriPlane3D(AddedLoss):
    """Σ_t w_t L_t(render_t(features)) beside the tasks' losses, in training alone (arXiv 2310.00986, section 3).

    The features of the one shared backbone become three planes xy, yz and zx. A point of the scene has the sum of what
    it meets on them; perceptrons give its density σ and, for every dense task, a vector y_t. Along the ray of a pixel

        α_i = 1 - exp(-σ_i δ_i)      w_i = α_i Π_{j<i} (1 - α_j)      render_t = Σ_i w_i y_t,i

    so that all tasks have to agree on one geometry. Nothing of it is in the model: inference costs nothing more.

    Ours: rays are parallel in image coordinates, since data sets of single images come without cameras, which makes
    every look-up on a plane a product with two interpolation matrices; depths of the samples are drawn anew in every
    step, one in each of equal intervals; rays are cast once per cell of the finest level of at least `stride`, and
    what they render is upsampled to the image's size.

    Args:
        weight: of all rendered losses. weights: task → factor, 1 where it is missing.
        channels: of the planes. hidden: width of the perceptrons.
        samples: points on a ray.
        stride: smallest stride of a pyramid level to cast rays from.
    """

    needs_dense: ClassVar[bool] = True

    def __init__(
        self,
        weighting: Weighting,
        *,
        weight: NonNegativeFloat = 1.0,
        weights: dict[str, float],
        channels: PositiveInt = 32,
        hidden: PositiveInt = 64,
        samples: PositiveInt = 24,
        stride: PositiveInt = 4,
    ) -> None:
        super().__init__(weighting)
        self.weight, self.weights, self.samples, self.stride = weight, dict(weights), samples, stride
        self.channels, self.hidden = channels, hidden

    def prepare(self, model: nn.Module, tasks: Mapping[str, Task], inputs: InputSpec) -> None:
        dense = {name: task for name, task in tasks.items() if task.kind == "dense"}
        if not dense:
            raise UserError("wrapper=triplane_3d renders dense tasks, and there are none", "wrapper=none")
        if strange := sorted(set(self.weights) - set(dense)):
            raise UserError(f"wrapper.weights names '{strange[0]}', no dense task", suggest(strange[0], dense))
        self._tap = FeatureTap(model, "triplane_3d")
        [backbone] = model.all_backbones()  # type: ignore[operator]
        outputs = {name: task.out_channels for name, task in dense.items()}
        self.renderer = Renderer(backbone.spec, outputs, self.channels, self.hidden, self.samples, self.stride)

    def attach(self, around: Surroundings) -> None:
        super().attach(around)
        self.renderer.train()

    @contextmanager
    def watching(self) -> Iterator[None]:
        with self._tap.watching() as self._seen:
            yield

    def added(self, batch: Batch) -> Tensor | None:
        engine, tasks = self.around.engine, self.around.forward.tasks
        if len(self._seen) != len(batch):
            raise UserError(
                "wrapper=triplane_3d reads the features that the backbone makes in one pass, and this architecture "
                "runs it stage by stage",
                "choose hard_sharing or a decoder-focused architecture, or wrapper=none",
                "runner ls architecture",
            )
        total: Tensor | None = None
        for group, features in zip(batch, self._seen, strict=True):
            wanted = [name for name in self.renderer.points if name in group.targets]
            if not wanted:
                continue
            with self.around.forward.autocast():
                rendered = self.renderer(features, wanted)
            for name, made_BCHW in rendered.items():
                count = float(engine.counts[engine.tasks.index(name)])
                if count == 0:
                    continue
                loss = tasks[name].loss_sum(made_BCHW.float(), group.targets[name].to(engine.device)) / count
                part = loss * (self.weight * self.weights.get(name, 1.0))
                total = part if total is None else total + part
        return total


class Renderer(nn.Module):
    """A pyramid → predictions of dense tasks, through a tri-plane.

    Args:
        spec: of the backbone.
        outputs: task → channels of its prediction.
        channels, hidden, samples, stride: see `TriPlane3D`.
    """

    def __init__(
        self, spec: FeatureSpec, outputs: Mapping[str, int], channels: int, hidden: int, samples: int, stride: int
    ) -> None:
        super().__init__()
        self.strides, self.samples = spec.strides, samples
        self.level = next((i for i, s in enumerate(spec.strides) if s >= stride), len(spec.strides) - 1)
        self.lateral = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in spec.channels[self.level :])
        self.planes = nn.Conv2d(channels, 3 * channels, 3, padding=1)
        self.density = perceptron(channels, hidden, 1)
        self.points = nn.ModuleDict({name: perceptron(channels, hidden, out) for name, out in outputs.items()})

    def forward(self, features: Features, tasks: list[str]) -> dict[str, Tensor]:
        """Predictions (B, C, H, W) at the image's size."""
        levels, strides = (features.pyramid or [])[self.level :], self.strides[self.level :]
        cells = levels[0].shape[-2:]
        x_BCHW = sum(
            upsample(lateral(level), stride // strides[0], (cells[0], cells[1]))
            for lateral, level, stride in zip(self.lateral, levels, strides, strict=True)
        )
        z_S = self.depths(x_BCHW)  # type: ignore[arg-type]
        points_BHWSC = self.volume(self.planes(F.relu(x_BCHW)), z_S)  # type: ignore[arg-type]
        density_BHWS = F.softplus(self.density(points_BHWSC).squeeze(-1).float())
        shares_BHWS = ray_weights(density_BHWS, z_S).to(points_BHWSC.dtype)
        rendered = {}
        for name in tasks:
            values_BHWSC = self.points[name](points_BHWSC)
            map_BCHW = (shares_BHWS.unsqueeze(-1) * values_BHWSC).sum(3).permute(0, 3, 1, 2)
            rendered[name] = upsample(map_BCHW, strides[0], features.size or (0, 0))
        return rendered

    def depths(self, like: Tensor) -> Tensor:
        """(S,) in (0, 1), near to far: one in each of S equal intervals, at its middle in evaluation."""
        at = torch.rand(self.samples).to(like.device) if self.training else torch.full((self.samples,), 0.5)
        return (torch.arange(self.samples, device=like.device) + at.to(like.device)) / self.samples

    @staticmethod
    def volume(planes_BPHW: Tensor, z_S: Tensor) -> Tensor:
        """(B, H, W, S, C): the sum of what the point (x, y, z) meets on the planes xy, yz and zx."""
        xy, yz, zx = planes_BPHW.chunk(3, dim=1)
        height, width = xy.shape[-2:]
        # A plane is a map of H × W cells whatever its axes: z runs along the columns of yz and the rows of zx.
        yz_BCHS = yz @ interpolation(z_S, width).to(yz).T
        zx_BCSW = interpolation(z_S, height).to(zx) @ zx
        volume = xy.unsqueeze(-1) + yz_BCHS.unsqueeze(-2) + zx_BCSW.transpose(-1, -2).unsqueeze(-3)
        return volume.permute(0, 2, 3, 4, 1)


def perceptron(before: int, hidden: int, after: int) -> nn.Sequential:
    """One hidden layer."""
    return nn.Sequential(nn.Linear(before, hidden), nn.ReLU(), nn.Linear(hidden, after))


def interpolation(z_S: Tensor, cells: int) -> Tensor:
    """(S, cells) weights of linear interpolation at z in [0, 1] between the centres of cells; constant outside."""
    at_S1 = (z_S * cells - 0.5).clamp(0, cells - 1).unsqueeze(1)
    return (1 - (at_S1 - torch.arange(cells, device=z_S.device)).abs()).clamp_min(0)


def ray_weights(density_BHWS: Tensor, z_S: Tensor) -> Tensor:
    """Weights w (B, H, W, S), summing to 1: what is left of the ray stops at the last point, as in NeRF."""
    optical = density_BHWS[..., :-1] * z_S.diff()
    passed = torch.cat([torch.zeros_like(density_BHWS[..., :1]), optical.cumsum(-1)], dim=-1).neg().exp()
    stopped = torch.cat([1 - optical.neg().exp(), torch.ones_like(density_BHWS[..., :1])], dim=-1)
    return passed * stopped
