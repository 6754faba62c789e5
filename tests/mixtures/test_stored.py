"""Examples made on the device equal those that loaders make, from the same random numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from runner.errors import UserError
from runner.mixtures.augment import Augment
from runner.mixtures.collate import collate
from runner.mixtures.colours import Colours, photometric
from runner.mixtures.dense import DenseDataset, Record
from runner.mixtures.samplers import All
from runner.mixtures.stored import change_colours, collate_stored
from runner.mixtures.stream import Stream, eval_batches
from runner.mixtures.views import ClassDecoder, Layer, decode_depth, decode_edge, decode_normals
from runner.types import Group

LAYERS = {
    "segmentation": Layer("classes", ClassDecoder(5, first=1, unlabelled=(0, 255))),
    "wide": Layer("classes", ClassDecoder(5, unlabelled=(-1,))),  # not stored as bytes
    "depth": Layer("depth", decode_depth),
    "disparity": Layer("inverse_depth", decode_depth),
    "normals": Layer("normals", decode_normals),
    "directions": Layer("normals", decode_normals),  # stored as floats
    "edge": Layer("edge", decode_edge),
    "share": Layer("mask", lambda stored: stored.astype(np.float32) / 9),
}


class Made:
    """Random records, of one size or of several; every third lacks its depth, and normals have a size of their own."""

    layers = LAYERS

    def __init__(self, sizes: list[tuple[int, int]]) -> None:
        self.sizes = sizes

    def read(self, index: int, wanted: Any) -> Record:
        rng = np.random.default_rng(index)
        h, w = self.sizes[index % len(self.sizes)]
        smooth = Image.fromarray(rng.integers(0, 256, (h // 4, w // 4, 3), np.uint8)).resize((w, h), 2)
        depth = rng.uniform(0, 8, (h, w)).astype(np.float32)
        depth[rng.random((h, w)) < 0.1] = 0
        directions = rng.normal(size=(3, h, w)).astype(np.float32)
        directions /= np.linalg.norm(directions, axis=0)
        directions[:, :3] = 0
        maps = {
            "segmentation": rng.integers(0, 6, (h, w)).astype(np.uint8),
            "wide": rng.integers(-1, 5, (h, w)),
            "depth": depth,
            "disparity": depth,
            "normals": rng.integers(0, 256, (3, h // 2, w // 2)).astype(np.uint8),
            "directions": directions,
            "edge": (rng.random((h, w)) < 0.1).astype(np.uint8) * 255,
            "share": rng.integers(0, 10, (h, w)).astype(np.uint8),
        }
        if index % 3 == 2:
            del maps["depth"]
        return Record(smooth, {name: maps[name] for name in wanted if name in maps}, str(index))


def made(sizes: list[tuple[int, int]], fit: str = "pad", device: str = "auto", **augment: Any) -> DenseDataset:
    parsed = Augment.parse({**augment, "device": device}) if augment else None
    return DenseDataset(
        "made", list(LAYERS), Made(sizes), range(6), size=(24, 32), fit=fit, augment=parsed,
        share_of=("segmentation", 0), device=device,
    )  # type: ignore[arg-type]  # fmt: skip


def both(dataset: DenseDataset, seeds: list[int | None]) -> tuple[Group, Group]:
    """(made by the loader, made on the device) from the same random numbers."""

    def rng(seed: int | None) -> np.random.Generator | None:
        return None if seed is None else np.random.default_rng(seed)

    usual = collate("made", [dataset.example(i, rng(seed)) for i, seed in enumerate(seeds)])
    stored = [dataset.stored_example(i, rng(seed)) for i, seed in enumerate(seeds)]
    return usual, collate_stored("made", stored, LAYERS).finish("cpu")


GEOMETRIES: dict[str, dict[str, Any]] = {
    "flip": {"flip": True},
    "zoom": {"scale": [0.5, 2.0], "between": True, "flip": True, "max_share": 0.75},
    "zooms": {"scale": [1.0, 1.2, 1.5], "crop": [20, 28], "flip": True},
    "shrunk": {"scale": [0.3], "crop": [24, 32]},
}


@pytest.mark.parametrize("sizes", [[(30, 40)], [(30, 40), (48, 20), (24, 32)]], ids=["one size", "several"])
@pytest.mark.parametrize("fit", ["pad", "resize"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_the_same_examples(geometry: str, fit: str, sizes: list[tuple[int, int]]) -> None:
    usual, found = both(made(sizes, fit, **GEOMETRIES[geometry]), [11, 12, 13, 14, 15])
    assert found.ids == usual.ids
    assert found.targets.keys() == usual.targets.keys() == LAYERS.keys()
    for task, target in usual.targets.items():
        assert found.targets[task].dtype == target.dtype
        assert torch.equal(found.targets[task].isnan(), target.isnan()), task
        torch.testing.assert_close(found.targets[task], target, rtol=1e-5, atol=1e-5, equal_nan=True)
    difference = (found.inputs["pixels"] - usual.inputs["pixels"]).abs()
    assert found.inputs["pixels"].dtype == torch.float32
    assert difference.max() < 2 / 255
    assert difference.mean() < 0.7 / 255


@pytest.mark.parametrize("fit", ["pad", "resize"])
def test_the_same_evaluation(fit: str) -> None:
    usual, found = both(made([(24, 32)], fit), [None] * 4)
    torch.testing.assert_close(found.inputs["pixels"], usual.inputs["pixels"], rtol=0, atol=1e-6)
    for task, target in usual.targets.items():
        torch.testing.assert_close(found.targets[task], target, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_the_same_colours() -> None:
    rng = np.random.default_rng(0)
    images = rng.random((40, 3, 9, 11)).astype(np.float32)
    images[0] = 0.5  # grey has no hue
    expected = np.stack([photometric(image.copy(), np.random.default_rng(i)) for i, image in enumerate(images)])
    numbers = torch.tensor([Colours.draw(np.random.default_rng(i)).numbers() for i in range(40)])
    torch.testing.assert_close(
        change_colours(torch.from_numpy(images), numbers), torch.from_numpy(expected), rtol=0, atol=2e-5
    )
    still = torch.tensor([Colours().numbers()] * 40)
    assert torch.equal(change_colours(torch.from_numpy(images), still), torch.from_numpy(images))


def test_colours_leave_the_padding_alone() -> None:
    usual, found = both(made([(12, 16)], colour=True), [3, 4, 5])
    assert (found.inputs["pixels"] - usual.inputs["pixels"]).abs().max() < 1e-4


def test_a_stream_and_an_evaluation_on_a_device() -> None:
    """The same ids in the same order; `auto` hands over what is stored to a GPU alone."""
    sets = {where: {"made": made([(30, 40)], device=where, flip=True)} for where in ("loader", "accelerator", "auto")}
    streams = {
        where: iter(Stream(found, All({"made": 6}), batch_size=3, seed=1, device=torch.device("cpu")))
        for where, found in sets.items()
    }
    for _ in range(3):
        steps = {where: next(stream)[0][0][0] for where, stream in streams.items()}
        assert steps["loader"].ids == steps["accelerator"].ids
        assert torch.equal(steps["loader"].targets["wide"], steps["accelerator"].targets["wide"])
        assert torch.equal(steps["loader"].inputs["pixels"], steps["auto"].inputs["pixels"])
    assert made([(30, 40)]).hands_over_stored("cuda")
    assert not made([(30, 40)]).hands_over_stored("cpu")
    assert not made([(30, 40)], device="loader", flip=True).hands_over_stored("cuda")
    batches = list(eval_batches(sets["accelerator"]["made"], batch_size=4, device=torch.device("cpu")))
    assert [len(batch) for batch in batches] == [4, 2]


def test_a_value_that_is_no_class_is_named() -> None:
    dataset = made([(30, 40)])
    example = dataset.stored_example(0, None)
    example.maps["segmentation"] = example.maps["segmentation"].copy()
    example.maps["segmentation"][2, 3] = 77
    with pytest.raises(UserError, match="example '0', task 'segmentation': stored label 77"):
        collate_stored("made", [example], LAYERS)


def test_a_map_that_nobody_has_is_left_out() -> None:
    dataset = made([(30, 40)])
    example = dataset.stored_example(2, None)
    assert "depth" not in collate_stored("made", [example], LAYERS).finish("cpu").targets
