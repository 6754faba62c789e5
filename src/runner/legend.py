"""What the colours of a picture mean, without saying how it is drawn: tasks make legends, tracking draws them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Legend:
    """Named colours, or a bar of colours between two ends, or neither.

    Attributes:
        swatches: (name, (red, green, blue)).
        bar: (N, 3) uint8, from the low end to the high one; None for none.
        low, high: what the ends of the bar are, such as "0 m".
        words: said of the picture as a whole.
    """

    swatches: tuple[tuple[str, tuple[int, int, int]], ...] = ()
    bar: np.ndarray | None = None
    low: str = ""
    high: str = ""
    words: str = ""
