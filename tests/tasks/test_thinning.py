from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, label

from runner.tasks.boundaries.thinning import thin_map as thin

GIVEN = """\
.........###....##############
.........###...##########...##
.########################....#
.########################...##
.########################..###
###...##################...###
####..###################.####
####..###############..#######
####..#############....#######
####..#############....#######
###.....####.#######...#######
###.......##.#################
###.........##################
###.........#################.
"""
THINNED = """\
........................####..
.......................#....#.
......................#......#
...###...............#......#.
..#...####.......#####......#.
.#........#.....#.....#.....#.
.#.........#####.......#...#..
.#........#...#.........#..#..
.#........#...#..........##...
.#........#....#..........#...
.#........#.....#.........#...
.#.........#...#.##.....##....
.#..........###....#####......
..............................
"""
"""What scikit-image 0.26 makes of it (`skimage.morphology.thin`), which the released readers call."""


def drawn(text: str) -> np.ndarray:
    return np.array([[c == "#" for c in line] for line in text.splitlines()])


def test_the_same_as_scikit_image() -> None:
    np.testing.assert_array_equal(thin(drawn(GIVEN)), drawn(THINNED))


@pytest.mark.parametrize("seed", range(4))
def test_pieces_and_holes_stay_and_nothing_more_can_go(seed) -> None:
    """Compared with counts of connected components: 8 neighbours for what is there, 4 for what is not."""
    map_HW = gaussian_filter(np.random.default_rng(seed).normal(size=(40, 50)), 2) > 0.01
    thinned = thin(map_HW)
    assert not (thinned & ~map_HW).any()
    assert label(thinned, np.ones((3, 3)))[1] == label(map_HW, np.ones((3, 3)))[1]
    assert label(np.pad(~thinned, 1, constant_values=True))[1] == label(np.pad(~map_HW, 1, constant_values=True))[1]
    np.testing.assert_array_equal(thin(thinned), thinned)


def test_maps_in_the_order_of_matlab() -> None:
    np.testing.assert_array_equal(thin(np.asfortranarray(drawn(GIVEN))), drawn(THINNED))


def test_nothing_and_lines_stay_as_they_are() -> None:
    for map_HW in (np.zeros((3, 4), bool), np.eye(5, dtype=bool), np.ones((1, 6), bool)):
        np.testing.assert_array_equal(thin(map_HW), map_HW)
