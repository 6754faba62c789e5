"""Windows of zoomed images against Pillow's, and views of many rows against the same without blocks."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from runner.mixtures import resample
from runner.mixtures.colours import ROWS, Colours
from runner.mixtures.resample import window
from runner.mixtures.views import (
    MISSING_INT,
    ClassDecoder,
    Layer,
    View,
    decode_depth,
    decode_edge,
    decode_normals,
    unit,
    view_image,
    view_map,
)

LAYERS = {
    "classes": Layer("classes", ClassDecoder(40, first=1, unlabelled=(0, 255))),
    "depth": Layer("depth", decode_depth),
    "inverse_depth": Layer("inverse_depth", decode_depth),
    "normals": Layer("normals", decode_normals),
    "mask": Layer("mask", decode_edge),
}


def smooth(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    small = rng.integers(0, 256, (height // 6 + 2, width // 6 + 2, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def cases(count: int) -> list[tuple[int, tuple[int, int], tuple[int, int], tuple[int, int, int, int]]]:
    """Seed, size of the image, grid, window: shrunk, enlarged, both, with and without common divisors."""
    rng = np.random.default_rng(0)
    found = []
    for seed in range(count):
        size = rng.integers(20, 160, 2) if seed % 2 else np.array((96, 128))
        grid = np.maximum((size * rng.uniform(0.3, 2.5, 2 if seed % 3 else 1)).astype(int), 1)
        shape = [int(rng.integers(1, n + 1)) for n in grid]
        corner = [int(rng.integers(n - m + 1)) for n, m in zip(grid, shape, strict=True)]
        box = (corner[1], corner[0], corner[1] + shape[1], corner[0] + shape[0])
        found.append((seed, (int(size[0]), int(size[1])), (int(grid[0]), int(grid[1])), box))
    return found


def channels(words_HW: np.ndarray) -> np.ndarray:
    return np.stack([words_HW >> shift & 255 for shift in (0, 8, 16)], -1).astype(int)


def by_pillow(image: Image.Image, grid: tuple[int, int], box: tuple[int, int, int, int]) -> np.ndarray:
    x, y = image.width / grid[1], image.height / grid[0]
    source = (box[0] * x, box[1] * y, min(box[2] * x, image.width), min(box[3] * y, image.height))
    resized = image.resize((box[2] - box[0], box[3] - box[1]), Image.Resampling.BILINEAR, box=source)
    return np.asarray(resized).astype(int)


@pytest.mark.skipif(not resample.fast(), reason="PyTorch resamples bytes fast on processors with AVX2 only")
def test_windows_are_those_of_pillow_but_for_rounding() -> None:
    differences = []
    for seed, size, grid, box in cases(60):
        image = smooth(np.random.default_rng(seed), *size)
        found = channels(window(image, grid, box))
        expected = by_pillow(image, grid, box)
        assert found.shape == expected.shape
        differences.append(np.abs(found - expected).ravel())
    difference = np.concatenate(differences)
    assert difference.max() <= 2
    assert (difference > 1).mean() < 1e-4
    assert (difference > 0).mean() < 0.06


@pytest.mark.parametrize("fast", [True, False])
def test_exact_windows_and_slow_machines(fast, monkeypatch) -> None:
    monkeypatch.setattr(resample, "fast", lambda: fast)
    for seed, size, grid, box in cases(12):
        image = smooth(np.random.default_rng(seed), *size)
        np.testing.assert_array_equal(channels(window(image, grid, box, exact=fast)), by_pillow(image, grid, box))


def test_unchanged_pixels() -> None:
    image = smooth(np.random.default_rng(0), 40, 50)
    np.testing.assert_array_equal(channels(window(image, (40, 50), (0, 0, 50, 40))), np.asarray(image))
    np.testing.assert_array_equal(channels(window(image, (40, 50), (3, 4, 30, 31))), np.asarray(image)[4:31, 3:30])


def plainly(stored: np.ndarray, layer: Layer, view: View) -> np.ndarray:
    """A view pixel by pixel: the nearest stored one is taken first, and everything follows."""
    height, width = stored.shape[-2:]
    row, column = np.meshgrid(*(np.arange(n) for n in view.size), indexing="ij")
    if view.flip:
        column = view.size[1] - 1 - column
    row, column = row + view.offset[0], column + view.offset[1]
    inside = (row >= 0) & (row < view.grid[0]) & (column >= 0) & (column < view.grid[1])
    y = np.where(inside, (2 * row + 1) * height // (2 * view.grid[0]), 0)
    x = np.where(inside, (2 * column + 1) * width // (2 * view.grid[1]), 0)
    values = layer.decode(stored[..., y, x])
    if layer.kind == "depth":
        values = values / np.float32(view.scale)
    if layer.kind == "inverse_depth":
        values = values * np.float32(view.scale)
    if layer.kind == "normals":
        values = unit(values)
        values[0] *= -1 if view.flip else 1
    elif layer.kind != "classes":
        values = values[None]
    return np.where(inside, values, MISSING_INT if layer.kind == "classes" else np.nan)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("zoom", [(1.7, 1.3), (0.6, 0.8), (1.0, 1.0), (1.6, 0.7), (0.7, 1.6), (1.0, 1.5)])
def test_maps_of_many_rows(zoom, flip) -> None:
    """To the last bit, where some rows are repeated and others left out, in more than one block."""
    rng = np.random.default_rng(0)
    height, width = 2 * ROWS + 17, 75
    stored = {
        "classes": rng.integers(0, 41, (height, width)).astype(np.uint8),
        "depth": rng.uniform(-1, 9, (height, width)).astype(np.float32),
        "inverse_depth": rng.uniform(-1, 9, (height, width)).astype(np.float32),
        "normals": rng.integers(0, 256, (3, height, width)).astype(np.uint8),
        "mask": rng.integers(0, 256, (height, width)).astype(np.uint8),
    }
    grid = (int(height * zoom[0]), int(width * zoom[1]))
    for offset in ((0, 0), (-9, 5), (11, -6)):
        view = View(grid, offset, (2 * ROWS + 3, 60), zoom[0], flip)
        for kind, layer in LAYERS.items():
            expected = plainly(stored[kind], layer, view)
            given = np.full(expected.shape, 77, expected.dtype)
            for found in (view_map(stored[kind], layer, view), view_map(stored[kind], layer, view, given)):
                assert found.dtype == expected.dtype
                np.testing.assert_array_equal(found, expected)
            np.testing.assert_array_equal(given, expected)


@pytest.mark.parametrize("flip", [False, True])
def test_images_of_many_rows(flip) -> None:
    """Blocks of rows, colours and padding: the same as on the whole window at once."""
    image = smooth(np.random.default_rng(0), 2 * ROWS + 9, 90)
    colours = Colours(0.05, 1.2, 0.8, -0.06, False)
    view = View((image.height, image.width), (-5, 7), (2 * ROWS + 30, 70), 1.0, flip)
    expected = np.asarray(image)[: 2 * ROWS + 25, 7:77].transpose(2, 0, 1) * np.float32(1 / 255)
    expected = np.ascontiguousarray(expected[..., ::-1] if flip else expected)
    colours.change(expected)
    given = np.full((3, *view.size), 5, np.float32)
    assert view_image(image, view, colours, given) is given
    np.testing.assert_array_equal(given[:, 5 : 5 + expected.shape[1]], expected)
    edge = given[:, :5]
    assert (edge == edge[:, :1, :1]).all()
    np.testing.assert_array_equal(given[:, 5 + expected.shape[1] :].max((1, 2)), edge[:, 0, 0])
