"""The 3D-aware regulariser against its formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from runner.errors import UserError
from runner.specs import FeatureSpec
from runner.tasks.regression import Regression
from runner.training.wrappers.triplane_3d import Renderer, interpolation, ray_weights
from runner.types import Group
from tests.architectures.samples import SPEC, features
from tests.training.wrappers.real import TASKS, Real, check_promises, data, split
from tests.training.wrappers.worlds import option


def triplane(**keys):
    return option("wrapper", "triplane_3d", channels=6, hidden=8, samples=5, **keys)


def renderer(**keys):
    torch.manual_seed(0)
    settings = {"channels": 6, "hidden": 8, "samples": 5, "stride": 4} | keys
    return Renderer(SPEC, {"depth": 1, "normals": 3}, **settings)


def test_weights_of_a_ray_are_those_of_volume_rendering():
    density, z = torch.rand(2, 3, 4, 6) * 5, torch.rand(6).sort().values
    found = ray_weights(density, z)
    left = torch.ones(2, 3, 4)
    for i in range(6):
        alpha = 1 - torch.exp(-density[..., i] * (z[i + 1] - z[i])) if i < 5 else torch.ones(2, 3, 4)
        torch.testing.assert_close(found[..., i], left * alpha)
        left = left * (1 - alpha)
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 3, 4))


def test_a_wall_hides_what_is_behind_it():
    density = torch.zeros(1, 1, 1, 4)
    density[..., 1] = 1e6
    torch.testing.assert_close(
        ray_weights(density, torch.tensor([0.1, 0.3, 0.5, 0.9])).flatten(), torch.tensor([0.0, 1, 0, 0])
    )


def test_planes_are_read_by_bilinear_interpolation():
    """Against grid_sample, point by point."""
    torch.manual_seed(0)
    planes, z = torch.randn(2, 9, 4, 6), torch.rand(5)
    found = Renderer.volume(planes, z)
    xy, yz, zx = planes.chunk(3, 1)
    y, x = (torch.arange(4) + 0.5) / 4, (torch.arange(6) + 0.5) / 6
    for s in range(5):
        here = torch.full((4, 6), float(z[s]))
        rows, columns = y[:, None].expand(4, 6), x[None].expand(4, 6)

        def read(plane, first, second):
            grid = torch.stack([second, first], -1)[None].expand(2, -1, -1, -1) * 2 - 1
            return F.grid_sample(plane, grid, padding_mode="border", align_corners=False)

        expected = read(xy, rows, columns) + read(yz, rows, here) + read(zx, here, columns)
        torch.testing.assert_close(found[:, :, :, s].permute(0, 3, 1, 2), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(interpolation(z, 7).sum(1), torch.ones(5))


def test_rendering_by_hand():
    net = renderer().eval()
    given = features()
    made = net(given, ["normals"])["normals"]
    assert made.shape == (2, 3, 64, 64)
    x = sum(
        F.interpolate(lateral(level), size=(16, 16), mode="bilinear")
        for lateral, level in zip(net.lateral, given.pyramid, strict=True)
    )
    z = (torch.arange(5) + 0.5) / 5
    points = net.volume(net.planes(x.relu()), z)
    shares = ray_weights(F.softplus(net.density(points)).squeeze(-1), z)
    expected = torch.einsum("bhws,bhwsc->bchw", shares, net.points["normals"](points))
    torch.testing.assert_close(made, F.interpolate(expected, size=(64, 64), mode="bilinear"), atol=1e-5, rtol=1e-4)


def test_parameters_and_their_gradients():
    """Lateral and plane convolutions, a perceptron for density and one per task; training reaches all of them."""
    net = renderer()
    widths, c, h = SPEC.channels, 6, 8
    expected = sum(w * c + c for w in widths) + c * 3 * c * 9 + 3 * c + 3 * (c * h + h) + (h + 1) * (1 + 1 + 3)
    assert sum(p.numel() for p in net.parameters()) == expected
    given = features()
    sum(p.square().mean() for p in net(given, ["depth", "normals"]).values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert all(level.grad is not None for level in given.pyramid)
    assert renderer(stride=16).level == 2 and len(renderer(stride=16).lateral) == 2
    assert Renderer(FeatureSpec((4,), (8,)), {"d": 1}, 2, 2, 2, 32).level == 0


def test_samples_move_in_training_only():
    net = renderer()
    like = torch.zeros(1)
    first, second = net.depths(like), net.depths(like)
    assert not torch.equal(first, second) and torch.equal((first * 5).long(), torch.arange(5))
    assert torch.equal(net.eval().depths(like), (torch.arange(5) + 0.5) / 5)


def test_the_added_loss_is_that_of_the_tasks():
    made, group = Real("hard_sharing", triplane(weight=0.5, weights={"depth": 3.0})), data()
    made.wrapper.renderer.eval()
    _, grads = made.step(split(group, 1))
    own = {n: g for n, g in grads.items() if n.startswith("wrapper")}
    assert set(own) == {f"wrapper.{n}" for n, _ in made.wrapper.named_parameters()}
    made.wrapper.zero_grad()
    rendered = made.wrapper.renderer(made.net.backbone(group.inputs), list(TASKS))
    loss = 0.0
    for name, factor in (("segmentation", 0.5), ("depth", 1.5)):
        task, target = TASKS[name], group.targets[name]
        loss = loss + factor * task.loss_sum(rendered[name], target) / float(task.loss_count(target))
    loss.backward()
    for name, parameter in made.wrapper.named_parameters():
        torch.testing.assert_close(own[f"wrapper.{name}"], parameter.grad, atol=1e-6, rtol=1e-3)


@pytest.fixture
def still(monkeypatch):
    """Samples at the middle of their intervals, so that splits can be compared."""
    monkeypatch.setattr(Renderer, "depths", lambda self, like: (torch.arange(self.samples) + 0.5) / self.samples)


@pytest.mark.parametrize("architecture", ["hard_sharing", "pad_net"])
def test_promises_of_a_wrapper(still, architecture):
    keys = {"norm": "group"} if architecture == "pad_net" else {}
    check_promises(architecture, triplane(), **keys)


def test_what_cannot_work_is_said():
    made = Real("mtan", triplane(), norm="group")
    with pytest.raises(UserError, match="stage by stage"):
        made.step(split(data(), 1))
    with pytest.raises(UserError, match="one representation that the tasks share"):
        Real("single_task", triplane())
    with pytest.raises(UserError, match="names 'dept', no dense task"):
        Real("hard_sharing", triplane(weights={"dept": 1.0}))
    made = Real("hard_sharing", triplane())
    with pytest.raises(UserError, match="renders dense tasks, and there are none"):
        made.wrapper.prepare(made.net, {"income": Regression("income")}, None)


def test_a_group_without_dense_labels_adds_nothing():
    made, group = Real("hard_sharing", triplane()), data()
    empty = Group("d", group.inputs, {}, group.ids)
    _, grads = made.step([[group, empty]])
    assert all(g.isfinite().all() for g in grads.values())
