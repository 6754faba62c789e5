"""One geometric view of an example (zoom, crop, flip), applied alike to its image and to all its maps.

Images are resampled bilinearly (with a low-pass filter when they shrink), maps by their nearest pixel, as ATRC and
InvPT do: no label, depth or normal is ever mixed with another one, so nothing invalid can bleed. Edges, a pixel wide,
would be lost that way: when they shrink, a pixel is an edge where one lies anywhere in its cell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from runner.mixtures.colours import ROWS, Colours
from runner.mixtures.resample import window

if TYPE_CHECKING:
    from PIL.Image import Image

PAD_COLOUR = (124, 116, 104)
"""What surrounds an image that is smaller than its crop: ImageNet's mean, zero after a backbone's normalisation."""

MISSING_INT = -100
"""The class of an unlabelled pixel: `runner.types.MISSING_INT`, which lives beside torch."""

UNIT = np.float32(1 / 255)

_WRONG = -101  # a stored value that is no class

MapKind = Literal["classes", "depth", "inverse_depth", "normals", "edge", "mask"]


@dataclass(frozen=True)
class Layer:
    """How a stored map becomes a target.

    Attributes:
        kind: what it means, which decides how a view changes its values.
        decode: stored pixels (h, w), for normals (3, h, w) → a new array of the same shape: int64 with -100 for
            classes; float32, NaN where unlabelled, for the others. Normals may have any length.
    """

    kind: MapKind
    decode: Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class View:
    """A window of `size` onto the zoomed image.

    Attributes:
        grid: (H, W) of the image after the zoom.
        offset: (row, column) of the window's corner in that grid; what lies outside of the grid is padding.
        size: (H, W) of the window.
        scale: zoom; depth is divided by it, because an object twice as large is half as far away, and inverse depth
            multiplied.
        flip: mirror left and right.
        exact: resample the image as Pillow does, to the last bit, on every machine.
    """

    grid: tuple[int, int]
    offset: tuple[int, int]
    size: tuple[int, int]
    scale: float = 1.0
    flip: bool = False
    exact: bool = False

    def inside(self, axis: int) -> tuple[int, int]:
        """First and one past last row (axis 0) or column (1) of the window that the image covers, before the flip."""
        start = min(max(-self.offset[axis], 0), self.size[axis])
        return start, max(min(self.grid[axis] - self.offset[axis], self.size[axis]), start)

    def nearest(self, axis: int, length: int) -> np.ndarray | slice:
        """Rows or columns of a stored map with `length` of them that the covered part of the window shows."""
        start, stop = self.inside(axis)
        first, last = start + self.offset[axis], stop + self.offset[axis]
        if length == self.grid[axis]:
            return slice(first, last)
        # Pixel centres; integers, so that the same pixel is picked on every machine.
        return (2 * np.arange(first, last) + 1) * length // (2 * self.grid[axis])

    def cells(self, axis: int, length: int) -> np.ndarray:
        """Borders of the cells of stored rows or columns that each covered row or column of the window stands for."""
        start, stop = self.inside(axis)
        return np.arange(start + self.offset[axis], stop + self.offset[axis] + 1) * length // self.grid[axis]


def view_image(image: Image, view: View, colours: Colours | None = None, out: np.ndarray | None = None) -> np.ndarray:
    """The window of an RGB image: (3, h, w) float32 in [0, 1].

    Args:
        image: any size; it is stretched to `view.grid`.
        colours: what happens to the window's colours, but for its padding.
        out: where to write it, all of it.
    """
    if out is None:
        out = np.empty((3, *view.size), np.float32)
    (top, bottom), (left, right) = view.inside(0), view.inside(1)
    down, across = view.offset
    if bottom > top and right > left:
        words_HW = window(image, view.grid, (left + across, top + down, right + across, bottom + down), view.exact)
        if view.flip:
            words_HW = words_HW[:, ::-1]
            left, right = view.size[1] - right, view.size[1] - left
        for row in range(0, bottom - top, ROWS):
            word = np.ascontiguousarray(words_HW[row : row + ROWS]).view("<i4")
            part_3HW = out[:, top + row : top + row + len(word), left:right]
            for channel, plane_HW in enumerate(part_3HW):
                np.multiply(word >> (8 * channel) & 255, UNIT, out=plane_HW, dtype=np.float32, casting="unsafe")
            if colours is not None:
                colours.change(part_3HW)
    _surround(out, (top, bottom, left, right), np.array(PAD_COLOUR, np.float32)[:, None, None] / 255)
    return out


def view_map(stored: np.ndarray, layer: Layer, view: View, out: np.ndarray | None = None) -> np.ndarray:
    """The window of a map as a target: (h, w) int64 for classes, (1, h, w) or (3, h, w) float32 for the others.

    Stored pixels are decoded before they are repeated, and after others are left out.

    Args:
        stored: (H, W), for normals (3, H, W).
        out: where to write it, all of it.
    """
    if out is None:
        out = new_target(layer, view.size)
    (top, bottom), (left, right) = view.inside(0), view.inside(1)
    height, width = stored.shape[-2:]
    rows: slice | np.ndarray = slice(0, bottom - top)
    columns: slice | np.ndarray = slice(None)
    if layer.kind == "edge" and height > view.grid[0] and width > view.grid[1] and bottom > top and right > left:
        part = _largest(_largest(stored, view.cells(0, height), -2), view.cells(1, width), -1)
    else:
        part, rows = _take(stored, view.nearest(0, height), -2)
        part, columns = _take(part, view.nearest(1, width), -1)
    if view.flip:
        left, right = view.size[1] - right, view.size[1] - left
        if isinstance(columns, slice):
            part = part[..., ::-1]
        else:
            columns = columns[::-1].copy()
    inner_CHW = (out[None] if out.ndim == 2 else out)[:, top:bottom, left:right]
    for row in range(0, part.shape[-2], ROWS):
        values_CHW = _values(part[..., row : row + ROWS, :], layer, view)
        if isinstance(columns, np.ndarray):
            values_CHW = _repeat(values_CHW, columns)
        if isinstance(rows, slice):
            inner_CHW[:, row : row + ROWS] = values_CHW
        else:
            first, stop = np.searchsorted(rows, (row, row + ROWS))
            for values_HW, there_HW in zip(values_CHW, inner_CHW, strict=True):
                # Nothing is clipped, nor looked after.
                np.take(values_HW, rows[first:stop] - row, axis=0, mode="clip", out=there_HW[first:stop])
    _surround(out, (top, bottom, left, right), MISSING_INT if layer.kind == "classes" else np.nan)
    return out


def new_target(layer: Layer, size: tuple[int, int]) -> np.ndarray:
    """An empty target of the type and shape that `view_map` makes."""
    if layer.kind == "classes":
        return np.empty(size, np.int64)
    return np.empty((3 if layer.kind == "normals" else 1, *size), np.float32)


def _values(stored: np.ndarray, layer: Layer, view: View) -> np.ndarray:
    """Stored pixels as values of a target, (C, h, w)."""
    values = layer.decode(stored)
    if layer.kind == "depth" and view.scale != 1.0:
        values /= np.float32(view.scale)
    if layer.kind == "inverse_depth" and view.scale != 1.0:
        values *= np.float32(view.scale)
    if layer.kind != "normals":
        return values[None]
    values = unit(values)
    if view.flip:
        np.negative(values[0], out=values[0])
    return values


def _surround(out: np.ndarray, inner: tuple[int, int, int, int], value: float | np.ndarray) -> None:
    """Fill what lies outside of top, bottom, left, right."""
    top, bottom, left, right = inner
    out[..., :top, :] = value
    out[..., bottom:, :] = value
    out[..., top:bottom, :left] = value
    out[..., top:bottom, right:] = value


def _take(array: np.ndarray, which: np.ndarray | slice, axis: int) -> tuple[np.ndarray, np.ndarray | slice]:
    """The rows or columns of an array that are shown, and which of these are to be repeated: a slice for none."""
    if isinstance(which, slice):
        return (array[..., which, :] if axis == -2 else array[..., which]), slice(None)
    if len(which) and len(which) > (span := int(which[-1] - which[0]) + 1):
        shown = slice(int(which[0]), int(which[0]) + span)
        return (array[..., shown, :] if axis == -2 else array[..., shown]), which - which[0]
    return np.take(array, which, axis=axis), slice(None)


def _repeat(values_CHW: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """These columns; three times as fast as `np.take`."""
    import torch

    index = torch.from_numpy(columns).expand(*values_CHW.shape[:2], len(columns))
    return torch.from_numpy(values_CHW).gather(2, index).numpy()


def _largest(array: np.ndarray, borders: np.ndarray, axis: int) -> np.ndarray:
    """The largest value in each cell along an axis; faster than `reduceat` for cells of a few pixels."""
    first, last = borders[:-1], borders[1:] - 1
    found = np.take(array, first, axis=axis)
    for k in range(1, int((last - first).max()) + 1):
        np.maximum(found, np.take(array, np.minimum(first + k, last), axis=axis), out=found)
    return found


def unit(normals_3HW: np.ndarray) -> np.ndarray:
    """Make vectors of length one, in place; NaN for those shorter than ½ or longer than 1½, which means "unknown".

    Archives store (0, 0, 0) for an unknown normal, which 8 bits turn into a length of about 0.01 or, for black, 1.7.
    """
    x, y, z = normals_3HW
    square_HW = x * x
    square_HW += y * y
    square_HW += z * z
    unknown_HW = (square_HW <= 0.25) | (square_HW >= 2.25)
    if unknown_HW.any():
        np.copyto(square_HW, np.float32(np.nan), where=unknown_HW)
    return np.divide(normals_3HW, np.sqrt(square_HW, out=square_HW), out=normals_3HW)


def decode_depth(stored: np.ndarray) -> np.ndarray:
    """Metres; NaN where the stored depth is zero, negative or not finite."""
    depth = stored.astype(np.float32, order="C")
    known = (depth > 0) & (depth < np.inf)
    if not known.all():
        depth[~known] = np.nan
    return depth


def decode_normals(stored: np.ndarray) -> np.ndarray:
    """(3, h, w) float32: floats as they are, 8 bits as n = 2 v / 255 - 1."""
    normals = stored.astype(np.float32, order="C")
    if stored.dtype == np.uint8:
        normals *= np.float32(2 / 255)
        normals -= np.float32(1)
    return normals


def decode_edge(stored: np.ndarray) -> np.ndarray:
    """1 where the stored value is at least half of its type's range (of 1, for floats and booleans)."""
    half = 128 if stored.dtype == np.uint8 else 0.5
    return (stored >= half).astype(np.float32)


class ClassDecoder:
    """Decodes labels that are stored as `first`, `first + 1`, … for class 0, 1, …

    Args:
        num_classes: how many there are. unlabelled: stored values that mean "no label".

    Raises (when it decodes):
        ValueError: any other stored value.
    """

    def __init__(self, num_classes: int, *, first: int = 0, unlabelled: Sequence[int] = (255,)) -> None:
        self.num_classes, self.first, self.unlabelled = num_classes, first, tuple(unlabelled)
        self._bytes = self._decode(np.arange(256), strict=False)

    def __call__(self, stored: np.ndarray) -> np.ndarray:
        if stored.dtype != np.uint8:
            return self._decode(stored.astype(np.int64), strict=True)
        labels = np.take(self._bytes, stored, mode="clip")  # 256 entries: nothing is ever clipped, nor looked after
        if labels.size and labels.min() == _WRONG:
            self._refuse(labels == _WRONG, stored)
        return labels

    @property
    def table(self) -> np.ndarray:
        """(256,) int64: the class of each stored byte, -100 for unlabelled ones."""
        return np.where(self._bytes == _WRONG, MISSING_INT, self._bytes)

    def check(self, stored: np.ndarray) -> None:
        """Refuse bytes that are neither a class nor unlabelled; raises as decoding does."""
        wrong = self._bytes == _WRONG
        if np.take(wrong, stored, mode="clip").any():
            self._refuse(wrong[stored], stored)

    def _decode(self, stored: np.ndarray, strict: bool) -> np.ndarray:
        labels = stored - self.first
        labels = np.where((labels >= 0) & (labels < self.num_classes), labels, _WRONG)
        labels[np.isin(stored, self.unlabelled)] = MISSING_INT
        if strict:
            self._refuse(labels == _WRONG, stored)
        return labels

    def _refuse(self, wrong: np.ndarray, stored: np.ndarray) -> None:
        if wrong.any():
            last = self.first + self.num_classes - 1
            value = int(stored[wrong][0])
            raise ValueError(f"stored label {value} is not one of {self.num_classes} classes ({self.first}…{last})")
