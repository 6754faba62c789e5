"""How many images a second one core evaluates for odsF, oisF and AP.

    python scripts/bench/edges.py [--images 8] [--size 321x481] [--max-dist 0.0075] [--truths DIR]

Truths are edge maps (PNG, white on black), the borders of random regions where no --truths are given; predictions are
made of them: displaced by a few pixels, blurred, with weaker edges that are not there, at three stages of training.
Process time; bar: 20 images a second at 321 x 481.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from runner.tasks.boundaries.counts import boundary_counts


def smooth(rng: np.random.Generator, shape: tuple[int, int], width: float) -> np.ndarray:
    """A random map that varies over `width` pixels, of deviation 1."""
    values = ndimage.gaussian_filter(rng.normal(size=shape), width)
    return values / values.std()


def truth(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Borders between regions, about as many edge pixels as an annotated photo has."""
    regions = np.floor(1.2 * smooth(rng, shape, 28)).astype(int)
    return (regions != np.roll(regions, 1, 0)) | (regions != np.roll(regions, 1, 1))


def predictions(rng: np.random.Generator, edges: np.ndarray) -> dict[str, np.ndarray]:
    """Stage of training → uint8 map."""
    y, x = np.mgrid[: edges.shape[0], : edges.shape[1]]
    moved = [y + 2 * smooth(rng, edges.shape, 10), x + 2 * smooth(rng, edges.shape, 10)]
    near = ndimage.map_coordinates(ndimage.gaussian_filter(edges.astype(float), 2), moved, order=1)
    near /= near.max()
    texture = np.abs(smooth(rng, edges.shape, 3)) < 0.1
    weak = ndimage.gaussian_filter(texture.astype(float), 1.5)
    noise = smooth(rng, edges.shape, 4)
    logits = {
        "first steps": 0.8 * noise - 1,
        "halfway": 6 * near + 3 * weak - 3.2 + 0.6 * noise,
        "trained": 14 * near + 0.5 * noise - 6,
    }
    return {name: (255 / (1 + np.exp(-x))).astype(np.uint8) for name, x in logits.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--size", default="321x481")
    parser.add_argument("--max-dist", type=float, default=0.0075)
    parser.add_argument("--truths", type=Path)
    given = parser.parse_args()
    height, width = map(int, given.size.split("x"))
    rng = np.random.default_rng(0)
    if given.truths is not None:
        files = sorted(given.truths.glob("*.png"))[: given.images]
        size = (width, height)
        truths = [np.asarray(Image.open(f).convert("L").resize(size, Image.Resampling.NEAREST)) > 127 for f in files]
    else:
        truths = [truth(rng, (height, width)) for _ in range(given.images)]
    cases = [predictions(rng, edges) for edges in truths]
    for stage in cases[0]:
        began = time.process_time()
        for edges, made in zip(truths, cases, strict=True):
            boundary_counts(made[stage], edges.astype(np.uint8), given.max_dist)
        seconds = (time.process_time() - began) / len(truths)
        print(f"{stage:<12} {1e3 * seconds:6.1f} ms an image   {1 / seconds:5.1f} images a second on one core")


if __name__ == "__main__":
    main()
