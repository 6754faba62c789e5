"""Batches as they are stored, made into examples where the model is: zoom, crop, flip, colours and labels in one go.

The loader then only decodes: it hands over images and maps in the few bytes they are stored in (a third of what the
model reads), and what is to be seen of each. The rest runs on the accelerator, a batch at a time. What comes out is
what `runner.mixtures.views` and `runner.mixtures.augment` make of the same random numbers: the same labels, depths,
normals and edges, and the same images but for the rounding to 8 bits after each direction of a resize.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from runner.errors import UserError
from runner.mixtures.colours import Colours
from runner.mixtures.lending import empty
from runner.mixtures.views import PAD_COLOUR, ClassDecoder, Layer, View, decode_depth, decode_edge, decode_normals
from runner.types import MISSING_INT, Group


@dataclass
class StoredExample:
    """One example before any pixel of it is changed.

    Attributes:
        image: (h, w, 3) uint8. maps: task → stored map (h, w), for normals (3, h, w).
        view: what is seen of it. colours: what happens to its colours, None for nothing.
        id: readable.
    """

    image: np.ndarray
    maps: dict[str, np.ndarray]
    view: View
    colours: Colours | None
    id: str


@dataclass
class StoredGroup:
    """A batch of `StoredExample`s on its way to the device.

    Attributes:
        name: of the data set. ids: of its examples.
        tensors: what is copied to the device; "/image", "/view…", and per task its maps, their sizes and whether an
            example has one.
        kinds: task → how `finish` reads its maps.
        size: (H, W) of the window.
    """

    name: str
    ids: list[str]
    tensors: dict[str, Tensor]
    kinds: dict[str, str]
    size: tuple[int, int]
    has_colours: bool
    _pinned: bool = field(default=False)

    def __len__(self) -> int:
        return len(self.ids)

    def pin_memory(self) -> StoredGroup:
        """Called by the DataLoader where `pin_memory=True`."""
        pinned = {name: tensor.pin_memory() for name, tensor in self.tensors.items()}
        return StoredGroup(self.name, self.ids, pinned, self.kinds, self.size, self.has_colours, True)

    @torch.no_grad()
    def finish(self, device: torch.device | str) -> Group:
        """The group that the model reads, on `device`."""
        t = {name: tensor.to(device, non_blocking=self._pinned) for name, tensor in self.tensors.items()}
        least = self.tensors["/grid"].amin(0).tolist()  # here, where looking waits for nobody
        places = [_Axis(t, axis, self.size[axis], least[axis]) for axis in (0, 1)]
        targets = {task: _target(t, task, kind, places) for task, kind in self.kinds.items()}
        return Group(self.name, {"pixels": _pixels(t, places, self.has_colours)}, targets, self.ids)


# ---- in the loading process ------------------------------------------------------------------------------------------


def collate_stored(name: str, examples: Sequence[StoredExample], layers: Mapping[str, Layer]) -> StoredGroup:
    """Stack examples of one data set; images and maps of several sizes are padded at the bottom and right.

    Raises:
        UserError: a class map holds a value that is no class.
    """
    views = [example.view for example in examples]
    tensors = {
        "/image": _stack([example.image for example in examples], (0, 1)),
        "/stored": torch.tensor([example.image.shape[:2] for example in examples]),
        "/grid": torch.tensor([view.grid for view in views]),
        "/offset": torch.tensor([view.offset for view in views]),
        "/scale": torch.tensor([view.scale for view in views], dtype=torch.float32),
        "/flip": torch.tensor([view.flip for view in views]),
    }
    colours = [example.colours for example in examples]
    if any(c is not None for c in colours):
        tensors["/colours"] = torch.tensor([(c or Colours()).numbers() for c in colours], dtype=torch.float32)
    kinds = {}
    for task in dict.fromkeys(task for example in examples for task in example.maps):
        parts = []
        for example in examples:
            if task in example.maps:
                try:
                    kind, part = _shipped(example.maps[task], layers[task])
                except ValueError as error:
                    what = f"data set '{name}', example '{example.id}', task '{task}': {error}"
                    raise UserError(what, f"compare mixture.tasks.{task} with the data") from error
                kinds[task] = kind
                parts.append(part)
        first = parts[0]
        rows = (-2, -1)
        found = iter(parts)
        filled = [next(found) if task in e.maps else np.zeros((*first.shape[:-2], 1, 1), first.dtype) for e in examples]
        tensors[task] = _stack(filled, rows)
        tensors[f"{task}/size"] = torch.tensor([part.shape[-2:] for part in filled])
        tensors[f"{task}/there"] = torch.tensor([task in example.maps for example in examples])
        if kinds[task] == "table":
            decoder = layers[task].decode
            assert isinstance(decoder, ClassDecoder)
            tensors[f"{task}/table"] = torch.from_numpy(decoder.table)
    has_colours = "/colours" in tensors
    return StoredGroup(name, [example.id for example in examples], tensors, kinds, views[0].size, has_colours)


def _shipped(stored: np.ndarray, layer: Layer) -> tuple[str, np.ndarray]:
    """(how `finish` reads it, what is sent): stored values as they are where that is known, else decoded ones."""
    if isinstance(layer.decode, ClassDecoder) and stored.dtype == np.uint8 and type(layer.decode) is ClassDecoder:
        layer.decode.check(stored)
        return "table", stored
    raw = {("depth", decode_depth): "float32", ("normals", decode_normals): "uint8", ("edge", decode_edge): "uint8"}
    if raw.get((layer.kind, layer.decode)) == stored.dtype.name:  # type: ignore[call-overload]
        return f"{layer.kind} raw", stored
    decoded = layer.decode(stored)
    return layer.kind, decoded.astype(np.int16) if layer.kind == "classes" else decoded


def _stack(arrays: Sequence[np.ndarray], axes: tuple[int, int]) -> Tensor:
    """(B, …), each filled with zeros up to the largest along `axes`; copied once."""
    shape = list(arrays[0].shape)
    for axis in axes:
        shape[axis] = max(array.shape[axis] for array in arrays)
    kind = torch.from_numpy(np.empty(0, arrays[0].dtype)).dtype
    same = all(list(array.shape) == shape for array in arrays)
    batch = empty(len(arrays), *shape, dtype=kind)
    if not same:
        batch.zero_()
    for row, array in zip(batch.numpy(), arrays, strict=True):
        np.copyto(row[tuple(slice(n) for n in array.shape)], array)
    return batch


# ---- where the model is ----------------------------------------------------------------------------------------------


class _Axis:
    """Where the pixels of the window come from along one axis.

    Attributes:
        place: (B, n) position in the zoomed image. inside: (B, n) whether the image covers it.
        grid: (B, 1) length of the zoomed image. least: its smallest.
    """

    def __init__(self, t: Mapping[str, Tensor], axis: int, length: int, least: int) -> None:
        self.axis, self.least = axis, least
        window = torch.arange(length, device=t["/flip"].device).expand(len(t["/flip"]), length)
        if axis == 1:
            window = torch.where(t["/flip"][:, None], length - 1 - window, window)
        self.grid = t["/grid"][:, axis, None]
        self.place = window + t["/offset"][:, axis, None]
        self.inside = (self.place >= 0) & (self.place < self.grid)

    def nearest(self, stored: Tensor) -> Tensor:
        """(B, n) index of a stored map of these (B, 2) sizes, as `View.nearest`."""
        length = stored[:, self.axis, None]
        return torch.where(self.inside, (2 * self.place + 1) * length // (2 * self.grid), 0)

    def cells(self, stored: Tensor) -> tuple[Tensor, Tensor]:
        """(B, n) first and last index of the stored pixels that each pixel stands for, as `View.cells`."""
        length = stored[:, self.axis, None]
        first, last = self.place * length // self.grid, (self.place + 1) * length // self.grid - 1
        return torch.where(self.inside, first, 0), torch.where(self.inside, last, 0)

    def weights(self, stored: Tensor, most: int) -> Tensor:
        """(B, n, most): the shares of stored pixels in each pixel, by a triangle as wide as the larger of the two.

        This is Pillow's bilinear resampling, low-pass filter included.
        """
        length = stored[:, self.axis, None]
        ratio = length / self.grid
        centre = (self.place + 0.5) * ratio
        pixel = torch.arange(most, device=stored.device)
        width = ratio.clamp_min(1.0)[..., None]
        share = (1 - ((pixel + 0.5) - centre[..., None]).abs() / width).clamp_min(0)
        share = torch.where(pixel < length[..., None], share, 0.0)
        share = share / share.sum(-1, keepdim=True).clamp_min(1e-6)
        return torch.where(self.inside[..., None], share, 0.0)


def _pixels(t: Mapping[str, Tensor], places: Sequence[_Axis], has_colours: bool) -> Tensor:
    """(B, 3, H, W) float32 in [0, 1]."""
    image_B3HW = t["/image"].permute(0, 3, 1, 2).float()
    rows = places[0].weights(t["/stored"], image_B3HW.shape[2])[:, None]
    columns = places[1].weights(t["/stored"], image_B3HW.shape[3])[:, None]
    pixels_B3HW = ((rows @ image_B3HW) @ columns.mT) / 255
    if has_colours:
        pixels_B3HW = change_colours(pixels_B3HW, t["/colours"])
    inside = places[0].inside[:, None, :, None] & places[1].inside[:, None, None, :]
    pad = torch.tensor(PAD_COLOUR, dtype=torch.float32, device=inside.device).view(1, 3, 1, 1) / 255
    return torch.where(inside, pixels_B3HW, pad)


def _target(t: Mapping[str, Tensor], task: str, kind: str, places: Sequence[_Axis]) -> Tensor:
    """(B, H, W) int64 for classes, (B, C, H, W) float32 for the others."""
    maps, sizes = t[task], t[f"{task}/size"]
    maps = maps if maps.ndim == 4 else maps[:, None]
    meaning = kind.removesuffix(" raw")
    shrinks = (sizes > t["/grid"]).all(1)[:, None] if meaning == "edge" else None
    for axis in places:
        maps = _largest(maps, axis, sizes, shrinks) if shrinks is not None else _gather(maps, axis, axis.nearest(sizes))
    known = (places[0].inside[:, :, None] & places[1].inside[:, None, :])[:, None] & t[f"{task}/there"].view(
        -1, 1, 1, 1
    )
    if kind == "table":
        return torch.where(known, t[f"{task}/table"][maps.long()], MISSING_INT)[:, 0]
    if kind == "classes":
        return torch.where(known, maps.long(), MISSING_INT)[:, 0]
    values = maps.float()
    if kind == "depth raw":
        known = known & (values > 0) & values.isfinite()
    elif kind == "edge raw":
        values = (values >= 128).float()
    elif kind == "normals raw":
        values = values * (2 / 255) - 1
    scale = t["/scale"].view(-1, 1, 1, 1)
    if meaning == "depth":
        values = values / scale
    elif meaning == "inverse_depth":
        values = values * scale
    elif meaning == "normals":
        square = values.square().sum(1, keepdim=True)
        known = known & (square > 0.25) & (square < 2.25)
        values = values / square.sqrt()
        mirrored = torch.where(t["/flip"].view(-1, 1, 1), -values[:, 0], values[:, 0])
        values = torch.cat([mirrored[:, None], values[:, 1:]], 1)
    return torch.where(known, values, torch.nan)


def _gather(maps_BCHW: Tensor, axis: _Axis, index_BN: Tensor) -> Tensor:
    if axis.axis == 0:
        return maps_BCHW.gather(2, index_BN[:, None, :, None].expand(-1, maps_BCHW.shape[1], -1, maps_BCHW.shape[3]))
    return maps_BCHW.gather(3, index_BN[:, None, None, :].expand(-1, maps_BCHW.shape[1], maps_BCHW.shape[2], -1))


def _largest(maps_BCHW: Tensor, axis: _Axis, sizes: Tensor, shrinks: Tensor) -> Tensor:
    """The largest value of each cell where a map shrinks; its nearest pixel elsewhere."""
    first, last = axis.cells(sizes)
    near = axis.nearest(sizes)
    first, last = torch.where(shrinks, first, near), torch.where(shrinks, last, near)
    found = _gather(maps_BCHW, axis, first)
    widest = -(-maps_BCHW.shape[2 + axis.axis] // max(axis.least, 1))
    for k in range(1, widest + 1):
        found = torch.maximum(found, _gather(maps_BCHW, axis, torch.minimum(first + k, last)))
    return found


def change_colours(pixels_B3HW: Tensor, numbers_BN: Tensor) -> Tensor:
    """`runner.mixtures.colours.photometric` for a batch.

    Args:
        pixels_B3HW: RGB in [0, 1]. numbers_BN: `Colours.numbers` of each image.
    """
    delta, before, colourfulness, turn, after = (n.view(-1, 1, 1, 1) for n in numbers_BN.unbind(1))
    pixels_B3HW = ((pixels_B3HW + delta).clamp(0, 1) * before).clamp_max(1)
    high = pixels_B3HW.amax(1, keepdim=True)
    chroma = high - pixels_B3HW.amin(1, keepdim=True)
    r, g, b = pixels_B3HW.split(1, 1)
    scale = 1 / chroma.clamp_min(1e-6)
    hue = torch.where(high == r, (g - b) * scale, torch.where(high == g, (b - r) * scale + 2, (r - g) * scale + 4))
    start = torch.tensor([5.0, 3.0, 1.0], device=pixels_B3HW.device).view(1, 3, 1, 1)
    place = torch.remainder(hue + 6 * turn + start, 6)
    below = torch.minimum(place, 4 - place).clamp(0, 1) * torch.minimum(chroma * colourfulness, high)
    moved = (turn != 0) | (colourfulness != 1)
    pixels_B3HW = torch.where(moved, (high - below).clamp_min(0), pixels_B3HW)
    return (pixels_B3HW * after).clamp_max(1)
