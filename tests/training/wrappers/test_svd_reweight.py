"""SVD reweighting against numpy on the features themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from runner.errors import RunFailed
from runner.training.wrappers.svd_reweight import rows
from runner.types import Features
from tests.conformance.test_wrappers import Examples
from tests.training.wrappers.worlds import World, make_group, make_tasks, option

TASKS = make_tasks()


def features_and_labels(made, group):
    made.net.eval()
    x = made.net.backbone(group.inputs).pooled.detach().double().numpy()
    out = []
    for task in TASKS:
        y = group.targets[task].double().numpy()
        y = np.eye(3)[y.astype(int)] if task == "c" else y[:, None]
        there = ~np.isnan(y).any(1)
        out.append((x[there], y[there]))
    return out


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("rank", [1, 2, None])
def test_the_weights_are_those_of_algorithm_2(center, rank):
    wrapper = option("wrapper", "svd_reweight", center=center, rank=rank, scale="none")
    made = World(TASKS, wrapper, option("weighting", "equal"), train_set=Examples(TASKS))
    made.wrapper.start()
    assert made.net.training
    thetas = []
    for x, y in features_and_labels(made, Examples(TASKS).group):
        if center:
            x, y = x - x.mean(0), y - y.mean(0)
        thetas.append(x.T @ y / len(y))
    stacked = np.concatenate(thetas, axis=1)
    values, vectors = np.linalg.eigh(stacked @ stacked.T)  # not an SVD: another way to the same directions
    first = vectors[:, np.argsort(values)[::-1][: rank or 2]]
    expected = [np.linalg.norm(theta.T @ first) for theta in thetas]
    np.testing.assert_allclose(made.wrapper.alpha.numpy(), expected, rtol=1e-5)


def test_scaled_to_the_number_of_tasks_and_noise_counts_less():
    """Two tasks that are one direction of the features, and one of random labels: that one is weighed down."""
    made = World(TASKS, option("wrapper", "svd_reweight", rank=1), option("weighting", "equal"))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 6, generator=generator, dtype=torch.float64)
    signal = x[:, 0]
    noise = signal[torch.randperm(400, generator=generator)]
    alpha = made.wrapper.solve([(x.T @ y / 400)[:, None] for y in (signal, -signal, noise)])
    assert alpha.sum() == pytest.approx(3.0)
    assert alpha[2] < 0.3 * alpha[0] and alpha[0] == pytest.approx(float(alpha[1]))


def test_the_log_shows_the_tasks_own_losses_and_what_was_applied():
    group = make_group(TASKS)
    counts = torch.tensor([float(t.loss_count(group.targets[k])) for k, t in TASKS.items()], dtype=torch.float64)
    plain = World(TASKS, option("wrapper", "none"), option("weighting", "equal"))
    report, grads = plain.step([[group]], counts)
    made = World(TASKS, option("wrapper", "svd_reweight"), option("weighting", "equal"))
    made.wrapper.alpha.copy_(torch.tensor([2.0, 0.5, 0.5]))
    wrapped, weighed = made.step([[group]], counts)
    torch.testing.assert_close(wrapped.losses, report.losses)
    torch.testing.assert_close(wrapped.weights, torch.tensor([2.0, 0.5, 0.5]))
    for task, factor in (("a", 2.0), ("b", 0.5)):
        name = f"heads.{task}.0.weight"
        torch.testing.assert_close(weighed[name], factor * grads[name])


def test_dense_labels_are_read_at_the_centres_of_cells():
    task = type("T", (), {"kind": "dense", "out_channels": 3})
    z = torch.arange(8.0).view(1, 2, 2, 2)
    target = torch.full((1, 4, 4), -100)
    target[0, 1, 1], target[0, 3, 3] = 2, 1
    x, y = rows(task, Features(pyramid=[z]), target)
    picked = torch.nn.functional.interpolate(target[:, None].double(), size=(2, 2), mode="nearest-exact").flatten()
    there = picked != -100
    assert torch.equal(x, z.flatten(2)[0].T.double()[there]) and torch.equal(y.argmax(1), picked[there].long())


def test_without_labels_it_says_so():
    class Empty(Examples):
        def example(self, index, rng):
            made = super().example(index, rng)
            made.targets.pop("b", None)
            return made

    made = World(TASKS, option("wrapper", "svd_reweight"), option("weighting", "equal"), train_set=Empty(TASKS))
    with pytest.raises(RunFailed, match="no label of task 'b'"):
        made.wrapper.start()
