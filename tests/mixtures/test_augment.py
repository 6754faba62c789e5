"""Views and augmentation against geometry: planes, blocks of colour, one-pixel lines."""

from __future__ import annotations

import colorsys
from dataclasses import fields

import numpy as np
import pytest
import yaml
from PIL import Image

from runner.errors import UserError
from runner.mixtures.augment import Augment, whole
from runner.mixtures.colours import photometric
from runner.mixtures.dense import DenseDataset, Record
from runner.mixtures.indoor.hits import FOCAL
from runner.mixtures.rooms import RoomScenes, draw_room
from runner.mixtures.views import (
    PAD_COLOUR,
    ClassDecoder,
    Layer,
    View,
    decode_depth,
    decode_edge,
    decode_normals,
    view_image,
    view_map,
)

CLASSES = Layer("classes", ClassDecoder(13))
DEPTH = Layer("depth", decode_depth)
NORMALS = Layer("normals", decode_normals)
EDGE = Layer("edge", decode_edge)


def planar(normals_HW3: np.ndarray) -> np.ndarray:
    return normals_HW3.transpose(2, 0, 1)


# ---- keys ------------------------------------------------------------------------------------------------------------


def test_null_is_no_augmentation() -> None:
    assert Augment.parse(None) is None


def test_values_arrive() -> None:
    parsed = Augment.parse(
        {"scale": [1.0, 1.2, 1.5], "crop": [448, 576], "max_share": 0.75, "flip": True, "colour": True}
    )
    assert parsed == Augment((1.0, 1.2, 1.5), False, (448, 576), 0.75, True, True)
    assert Augment.parse({"scale": [0.5, 2], "between": True}) == Augment((0.5, 2), True)


@pytest.mark.parametrize("option", ["rooms", "nyud", "nyuv2"])
def test_every_key_stands_in_the_config(option, root) -> None:
    written = yaml.safe_load((root / f"configs/mixture/{option}.yaml").read_text())["augment"]
    assert list(written) == [field.name for field in fields(Augment)]
    assert Augment.parse(written) is not None


def test_all_mistakes_at_once_with_suggestions() -> None:
    with pytest.raises(UserError) as caught:
        Augment.parse({"scal": [1], "crop": [448], "flip": "yes", "color": True, "max_share": 0})
    text = str(caught.value)
    assert len(caught.value.problems) == 5
    assert "unknown key 'mixture.augment.scal'" in text
    assert "did you mean 'scale'?" in text
    assert "did you mean 'colour'?" in text
    assert "'mixture.augment.crop' must be [height, width] in pixels, not [448]" in text
    assert "'mixture.augment.flip' must be true or false" in text


@pytest.mark.parametrize(
    "scale", [[], 1.0, [0.0], [-1.0], ["a"], [True], {"min": 1, "max": 2}, [float("inf")], [float("nan")], None, "x"]
)
def test_scales_that_make_no_sense(scale) -> None:
    with pytest.raises(UserError, match="list of zooms"):
        Augment.parse({"scale": scale})


# ---- one view --------------------------------------------------------------------------------------------------------


def test_the_whole_view_changes_nothing() -> None:
    room = draw_room(0, 3, (30, 40))
    view = whole((30, 40), (30, 40), pad=False)
    np.testing.assert_array_equal(view_map(room.classes, CLASSES, view), room.classes)
    np.testing.assert_array_equal(view_map(room.depth, DEPTH, view)[0], room.depth)
    np.testing.assert_allclose(
        view_map(planar(room.normals), NORMALS, view).transpose(1, 2, 0), room.normals, atol=1e-6
    )
    np.testing.assert_array_equal(view_map(room.edge, EDGE, view)[0], room.edge)
    pixels = view_image(Image.fromarray(room.image), view)
    assert pixels.dtype == np.float32
    np.testing.assert_array_equal(np.rint(pixels.transpose(1, 2, 0) * 255), room.image)


def test_types_and_shapes() -> None:
    room = draw_room(0, 3, (30, 40))
    view = View((33, 44), (-2, 5), (20, 24), 1.1, True)
    for stored, layer, shape, dtype in (
        (room.classes, CLASSES, (20, 24), np.int64),
        (room.depth, DEPTH, (1, 20, 24), np.float32),
        (planar(room.normals), NORMALS, (3, 20, 24), np.float32),
        (room.edge, EDGE, (1, 20, 24), np.float32),
    ):
        seen = view_map(stored, layer, view)
        assert (seen.shape, seen.dtype) == (shape, dtype)
        assert seen.flags.c_contiguous
    pixels = view_image(Image.fromarray(room.image), view)
    assert (pixels.shape, pixels.dtype) == ((3, 20, 24), np.float32)
    assert pixels.flags.c_contiguous


def flipped(size):
    return View(size, (0, 0), size, 1.0, True)


def test_flipping_twice_changes_nothing() -> None:
    room = draw_room(0, 5, (30, 40))
    view = flipped((30, 40))
    for stored, layer in (
        (room.classes, CLASSES),
        (room.depth, DEPTH),
        (planar(room.normals), NORMALS),
        (room.edge, EDGE),
    ):
        once = view_map(stored, layer, view)
        again = once[0] if layer.kind in ("depth", "edge") else once
        twice = view_map(again, layer, view)
        np.testing.assert_allclose(twice, view_map(stored, layer, whole((30, 40), (30, 40), False)), atol=1e-6)
        assert not np.array_equal(once, twice)


def normals_by_cross_products(depth_HW: np.ndarray) -> np.ndarray:
    """(H - 1, W - 1, 3) from the points of a pixel, its right and its lower neighbour; towards the camera."""
    h, w = depth_HW.shape
    focal = FOCAL * max(h, w)
    x, y = np.meshgrid((np.arange(w) + 0.5 - w / 2) / focal, (np.arange(h) + 0.5 - h / 2) / focal)
    points = np.stack([x * depth_HW, y * depth_HW, depth_HW], -1).astype(np.float64)
    across = points[:-1, 1:] - points[:-1, :-1]
    along = points[1:, :-1] - points[:-1, :-1]
    normal = np.cross(along, across)
    return normal / np.linalg.norm(normal, axis=-1, keepdims=True)


def test_flipped_normals_are_those_of_the_flipped_depth() -> None:
    """The sign of x is right if normals computed anew from the mirrored depth agree."""
    room = draw_room(0, 5, (90, 120))
    view = flipped((90, 120))
    depth = view_map(room.depth, DEPTH, view)[0]
    normals = view_map(planar(room.normals), NORMALS, view).transpose(1, 2, 0)[:-1, :-1]
    anew = normals_by_cross_products(depth)
    agreement = (normals * anew).sum(-1)
    assert np.median(agreement) > 0.9999
    assert (agreement > 0.999).mean() > 0.85  # the others lie at borders
    wrong = normals * np.array([-1, 1, 1])
    assert ((wrong * anew).sum(-1) > 0.999).mean() < 0.85


def test_scaled_depth_of_a_plane() -> None:
    """1/Z = a x + b y + c, seen through a zoom s with the same focal length: 1/Z' = a x' + b y' + s c."""
    h, w, s, focal = 120, 160, 1.5, 130.0
    a, b, c = 0.10, -0.15, 0.4

    def inverse(height, width, offset_c):
        x, y = (np.arange(width) + 0.5 - width / 2) / focal, (np.arange(height) + 0.5 - height / 2) / focal
        return a * x[None] + b * y[:, None] + offset_c

    stored = (1 / inverse(h, w, c)).astype(np.float32)
    grid = (int(h * s), int(w * s))
    offset = ((grid[0] - h) // 2, (grid[1] - w) // 2)  # the window around the optical axis
    seen = view_map(stored, DEPTH, View(grid, offset, (h, w), s))[0]
    # The nearest stored pixel lies up to half a stored pixel away: 0.75 of a new one.
    steepest = 0.75 / focal * (abs(a) + abs(b))
    assert np.abs(1 / seen - inverse(h, w, s * c)).max() <= steepest + 1e-6
    unscaled = view_map(stored, DEPTH, View(grid, offset, (h, w), 1.0))[0]
    assert np.abs(1 / unscaled - inverse(h, w, s * c)).max() > 10 * steepest


def blocks(seed: int, cell: int = 12, rows: int = 8, columns: int = 10):
    """Random labels in blocks, and an image in which the colour tells the label."""
    labels = np.random.default_rng(seed).integers(0, 13, (rows, columns)).astype(np.uint8)
    labels = labels.repeat(cell, 0).repeat(cell, 1)
    image = np.stack([labels * 19, 255 - labels * 19, labels * 7], -1).astype(np.uint8)
    return image, labels


@pytest.mark.parametrize("seed", range(12))
def test_image_and_labels_move_together(seed: int) -> None:
    """Away from the borders of blocks every pixel has the colour of its label, whatever the view."""
    image, labels = blocks(seed)
    rng = np.random.default_rng(seed)
    augment = Augment((0.5, 2.0), True, (70, 90), flip=True)
    view = augment.draw(rng, labels.shape, labels.shape)
    seen = view_map(labels, CLASSES, view)
    pixels = view_image(Image.fromarray(image), view) * 255
    inner = np.ones_like(seen, bool)
    for dy in range(-3, 4):
        for dx in range(-3, 4):
            inner &= np.roll(seen, (dy, dx), (0, 1)) == seen
    inner[:3], inner[-3:], inner[:, :3], inner[:, -3:] = False, False, False, False
    known = inner & (seen >= 0)
    assert known.sum() > 50
    np.testing.assert_allclose(pixels[0][known], seen[known] * 19, atol=1.01)
    np.testing.assert_allclose(pixels[1][known], 255 - seen[known] * 19, atol=1.01)
    padding = inner & (seen < 0)
    np.testing.assert_allclose(pixels[:, padding], np.array(PAD_COLOUR)[:, None] * np.ones(padding.sum()), atol=0.01)


def test_nearest_is_the_nearest() -> None:
    """Against a search over all pixel centres."""
    for length, grid, offset, size in ((10, 23, 4, 12), (100, 33, 0, 33), (7, 7, 2, 5), (50, 80, -3, 90)):
        view = View((grid, grid), (offset, offset), (size, size))
        start, stop = view.inside(0)
        picked = np.arange(length)[view.nearest(0, length)]
        centres = (np.arange(start, stop) + offset + 0.5) * length / grid
        distance = np.abs(centres[:, None] - (np.arange(length) + 0.5)[None])
        np.testing.assert_allclose(distance[np.arange(len(picked)), picked], distance.min(1), atol=1e-9)


def test_padding_is_unlabelled_and_centred() -> None:
    room = draw_room(0, 1, (20, 20))
    view = whole((20, 20), (26, 30), pad=True)
    classes = view_map(room.classes, CLASSES, view)
    depth = view_map(room.depth, DEPTH, view)
    normals = view_map(planar(room.normals), NORMALS, view)
    edge = view_map(room.edge, EDGE, view)
    np.testing.assert_array_equal(classes[3:23, 5:25], room.classes)
    outside = np.ones((26, 30), bool)
    outside[3:23, 5:25] = False
    assert (classes[outside] == -100).all()
    for seen in (depth, normals, edge):
        assert np.isnan(seen[:, outside]).all()
        assert not np.isnan(seen[:, ~outside]).any()
    pixels = view_image(Image.fromarray(room.image), view)
    np.testing.assert_allclose(pixels[:, outside][:, 0] * 255, PAD_COLOUR, atol=1e-4)


def test_an_image_larger_than_its_padded_size_is_cut_in_the_middle() -> None:
    labels = np.arange(13 * 11).reshape(11, 13) % 13
    seen = view_map(labels, CLASSES, whole((11, 13), (5, 7), pad=True))
    np.testing.assert_array_equal(seen, labels[3:8, 3:10])


@pytest.mark.parametrize("scale", [0.37, 0.5, 1.0, 1.3, 2.0])
def test_what_is_invalid_does_not_bleed(scale: float) -> None:
    """Every value that comes out went in; holes keep their share of the image."""
    rng = np.random.default_rng(0)
    depth = rng.uniform(1, 5, (60, 80)).astype(np.float32)
    hole = np.zeros((60, 80), bool)
    hole[20:40, 30:50] = True
    depth[hole] = 0
    normals = rng.normal(size=(60, 80, 3)).astype(np.float32)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    normals[hole] = 0
    grid = (int(60 * scale), int(80 * scale))
    view = View(grid, (0, 0), grid, scale)
    seen = view_map(depth, DEPTH, view)
    assert np.isin(seen[~np.isnan(seen)], (depth[~hole] / np.float32(scale))).all()
    assert np.isnan(seen).mean() == pytest.approx(hole.mean(), abs=0.02)
    directions = view_map(planar(normals), NORMALS, view)
    np.testing.assert_array_equal(np.isnan(directions).any(0), np.isnan(seen[0]))
    lengths = np.linalg.norm(directions, axis=0)
    np.testing.assert_allclose(lengths[~np.isnan(lengths)], 1, atol=1e-5)


@pytest.mark.parametrize("bad", [0.0, -1.0, np.inf, np.nan])
def test_depths_that_are_none(bad: float) -> None:
    assert np.isnan(decode_depth(np.array([[bad]], np.float64))).all()


@pytest.mark.parametrize(("stored", "known"), [(0, False), (127, False), (128, False), (255, False)])
def test_eight_bit_colours_that_are_no_normals(stored: int, known: bool) -> None:
    grey = np.full((3, 2, 2), stored, np.uint8)
    assert np.isnan(view_map(grey, NORMALS, whole((2, 2), (2, 2), False))).all() == (not known)


def test_eight_bit_normals_are_unit() -> None:
    rng = np.random.default_rng(0)
    normals = rng.normal(size=(40, 40, 3))
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    stored = np.rint((normals + 1) * 127.5).astype(np.uint8)
    seen = view_map(planar(stored), NORMALS, whole((40, 40), (40, 40), False)).transpose(1, 2, 0)
    np.testing.assert_allclose(np.linalg.norm(seen, axis=-1), 1, atol=1e-5)
    angles = np.degrees(np.arccos(np.clip((seen * normals).sum(-1), -1, 1)))
    assert angles.max() < 0.6


def test_edges_survive_shrinking() -> None:
    """A line one pixel wide stays a line, where the nearest pixel would leave dots or nothing."""
    stored = np.zeros((64, 64), np.uint8)
    stored[:, 33] = 255
    stored[10] = 255
    seen = view_map(stored, EDGE, View((16, 16), (0, 0), (16, 16), 0.25))[0]
    expected = stored.reshape(16, 4, 16, 4).max((1, 3)) > 0
    np.testing.assert_array_equal(seen, expected)
    window = view_map(stored, EDGE, View((16, 16), (1, 5), (12, 9), 0.25))[0]
    np.testing.assert_array_equal(window, expected[1:13, 5:14])


def test_the_class_decoder() -> None:
    decode = ClassDecoder(40, first=1, unlabelled=(0, 255))
    stored = np.array([[0, 1, 40, 255]], np.uint8)
    np.testing.assert_array_equal(decode(stored), [[-100, 0, 39, -100]])
    with pytest.raises(ValueError, match="stored label 41 is not one of 40 classes"):
        decode(np.array([[41]], np.uint8))
    signed = ClassDecoder(13, unlabelled=(-1, 255))
    np.testing.assert_array_equal(signed(np.array([[-1, 0, 12, 255]], np.int64)), [[-100, 0, 12, -100]])
    with pytest.raises(ValueError, match="stored label -2"):
        signed(np.array([[-2]], np.int64))


# ---- what is drawn ---------------------------------------------------------------------------------------------------


def test_scales_from_a_list_and_from_a_range() -> None:
    rng = np.random.default_rng(0)
    some = [Augment((1.0, 1.2, 1.5)).draw(rng, (100, 100), (80, 80)) for _ in range(200)]
    assert {v.scale for v in some} == {1.0, 1.2, 1.5}
    assert {v.grid for v in some} == {(100, 100), (120, 120), (150, 150)}
    between = [Augment((0.5, 2.0), True).draw(rng, (100, 100), (80, 80)).scale for _ in range(500)]
    assert 0.5 <= min(between) < 0.55
    assert 1.95 < max(between) <= 2.0


def test_crops_reach_every_corner_and_stay_inside() -> None:
    rng = np.random.default_rng(0)
    views = [Augment(crop=(8, 6)).draw(rng, (10, 10), (10, 10)) for _ in range(500)]
    assert {v.offset for v in views} == {(y, x) for y in range(3) for x in range(5)}


def test_half_of_the_examples_are_mirrored() -> None:
    rng = np.random.default_rng(0)
    assert 400 < sum(Augment(flip=True).draw(rng, (9, 9), (9, 9)).flip for _ in range(1000)) < 600
    assert not any(Augment().draw(rng, (9, 9), (9, 9)).flip for _ in range(50))


def test_windows_of_one_class_are_drawn_again() -> None:
    labels = np.full((60, 60), 255, np.uint8)
    labels[:, 20:] = 3
    labels[:20, :40] = 5

    def too_much(view):
        part = view_map(labels, CLASSES, view)
        counts = np.bincount(part[part >= 0], minlength=13)
        return counts.sum() == 0 or counts.max() / counts.sum() >= 0.75

    exact = np.mean([too_much(View((60, 60), (y, x), (20, 20))) for y in range(41) for x in range(41)])
    rng = np.random.default_rng(0)
    for max_share, expected in ((1.0, exact), (0.75, exact**10)):  # the tenth window is taken as it is
        augment = Augment(crop=(20, 20), max_share=max_share)
        drawn = [too_much(augment.draw(rng, (60, 60), (60, 60), labels, 255)) for _ in range(600)]
        assert np.mean(drawn) == pytest.approx(expected, abs=0.06)
    assert exact - exact**10 > 0.5


def test_the_generator_decides_everything() -> None:
    source = RoomScenes(0, (40, 50))
    augment = Augment((0.7, 1.4), True, (32, 40), 0.8, True, True)
    dataset = DenseDataset(
        "rooms", ["depth", "edge"], source, range(5), size=(40, 50), augment=augment, share_of=("segmentation", -100)
    )
    np.random.seed(0)
    first = dataset.example(2, np.random.default_rng([1, 2]))
    np.random.seed(1)
    again = dataset.example(2, np.random.default_rng([1, 2]))
    other = dataset.example(2, np.random.default_rng([1, 3]))
    np.testing.assert_array_equal(first.inputs["pixels"], again.inputs["pixels"])
    np.testing.assert_array_equal(first.targets["depth"], again.targets["depth"])
    assert not np.array_equal(first.inputs["pixels"], other.inputs["pixels"])
    assert set(first.targets) == {"depth", "edge"}  # the class map that decides about crops is no target


def test_the_tasks_do_not_change_the_view() -> None:
    """A single-task baseline sees what the joint run sees."""
    source = RoomScenes(0, (40, 50))
    augment = Augment((0.7, 1.4), True, (20, 20), 0.6, True, True)

    def pixels(names):
        dataset = DenseDataset(
            "rooms", names, source, range(5), size=(40, 50), augment=augment, share_of=("segmentation", -100)
        )
        return [dataset.example(i, np.random.default_rng(i)).inputs["pixels"] for i in range(5)]

    for one, all_ in zip(pixels(["depth"]), pixels(["segmentation", "depth"]), strict=True):
        np.testing.assert_array_equal(one, all_)


def test_without_a_generator_nothing_is_random() -> None:
    source = RoomScenes(0, (40, 50))
    plain = DenseDataset("rooms", ["depth"], source, range(5), size=(40, 50))
    augmented = DenseDataset(
        "rooms", ["depth"], source, range(5), size=(40, 50), augment=Augment(flip=True, colour=True)
    )
    np.testing.assert_array_equal(plain.example(1, None).inputs["pixels"], augmented.example(1, None).inputs["pixels"])


def test_a_missing_map_is_a_missing_target() -> None:
    class Partial:
        layers = {"depth": DEPTH, "segmentation": CLASSES}  # noqa: RUF012

        def read(self, index, wanted):
            return Record(Image.new("RGB", (8, 6)), {"depth": np.ones((6, 8), np.float32)}, "one")

    example = DenseDataset("d", ["segmentation", "depth"], Partial(), range(1), size=(6, 8)).example(0, None)
    assert set(example.targets) == {"depth"}


def test_a_label_that_is_no_class_names_the_example() -> None:
    class Wrong:
        layers = {"segmentation": CLASSES}  # noqa: RUF012

        def read(self, index, wanted):
            return Record(Image.new("RGB", (8, 6)), {"segmentation": np.full((6, 8), 77, np.uint8)}, "one")

    dataset = DenseDataset("d", ["segmentation"], Wrong(), range(1), size=(6, 8))
    with pytest.raises(UserError, match="data set 'd', example 'one', task 'segmentation': stored label 77"):
        dataset.example(0, None)


# ---- colours ---------------------------------------------------------------------------------------------------------


class Scripted:
    """A generator whose choices are known: which of the changes are made, and how much."""

    def __init__(self, made, contrast_first, amounts):
        self.made, self.first, self.amounts = made, contrast_first, amounts

    def random(self, count=None):
        if count is None:
            return 0.0 if self.first else 0.9
        return np.array([0.0 if m else 0.9 for m in self.made])

    def uniform(self, low, high):
        return np.array(self.amounts)


def change(pixels, made, amounts, first=True):
    return photometric(pixels.copy(), Scripted(made, first, amounts))


@pytest.fixture
def colours() -> np.ndarray:
    """Random ones, greys, pure ones, black and white."""
    pixels = np.random.default_rng(0).random((3, 24, 16)).astype(np.float32)
    pixels[:, 0] = np.linspace(0, 1, 16)
    pixels[:, 1, :8] = np.array(np.meshgrid([0, 1], [0, 1], [0, 1])).reshape(3, 8)
    return pixels


def test_no_change_is_no_change(colours) -> None:
    np.testing.assert_array_equal(change(colours, (0, 0, 0, 0), (0.1, 1.5, 1.5, 0.1)), colours)


def test_brightness_and_contrast(colours) -> None:
    for delta in (-0.12, 0.1):
        seen = change(colours, (1, 0, 0, 0), (delta, 1, 1, 0))
        np.testing.assert_allclose(seen, np.clip(colours + delta, 0, 1), atol=1e-6)
    for first in (True, False):
        seen = change(colours, (0, 1, 0, 0), (0, 1.3, 1, 0), first)
        np.testing.assert_allclose(seen, np.clip(colours * 1.3, 0, 1), atol=1e-6)


@pytest.mark.parametrize("turn", [0.0, 0.07, -0.1])
@pytest.mark.parametrize("colourfulness", [0.5, 1.0, 1.5])
def test_saturation_and_hue_against_colorsys(colours, turn, colourfulness) -> None:
    seen = change(colours, (0, 0, colourfulness != 1, turn != 0), (0, 1, colourfulness, turn))
    for pixel, changed in zip(colours.reshape(3, -1).T, seen.reshape(3, -1).T, strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*map(float, pixel))
        expected = colorsys.hsv_to_rgb((hue + turn) % 1, min(saturation * colourfulness, 1), value)
        np.testing.assert_allclose(changed, expected, atol=2e-5)


def test_contrast_and_colours_in_either_order(colours) -> None:
    made, amounts = (0, 1, 1, 1), (0, 1.4, 0.7, 0.05)
    first = change(change(colours, (0, 1, 0, 0), amounts), (0, 0, 1, 1), amounts)
    last = change(change(colours, (0, 0, 1, 1), amounts), (0, 1, 0, 0), amounts)
    np.testing.assert_allclose(change(colours, made, amounts, True), first, atol=1e-6)
    np.testing.assert_allclose(change(colours, made, amounts, False), last, atol=1e-6)
    assert np.abs(first - last).max() > 0.05


def test_every_change_happens_in_half_of_the_examples(colours) -> None:
    rng = np.random.default_rng(0)
    changed = [photometric(colours.copy(), rng) for _ in range(800)]
    assert np.mean([np.array_equal(c, colours) for c in changed]) == pytest.approx(1 / 16, abs=0.03)
    assert all(c.min() >= 0 and c.max() <= 1 for c in changed)
