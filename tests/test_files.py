"""Small things about files."""

from __future__ import annotations

import pytest

from runner.files import size_in_words


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 B"),
        (812, "812 B"),
        (999.7, "1 kB"),
        (1_050_000, "1.05 MB"),
        (99_960_000, "100 MB"),
        (131_072_000, "131 MB"),
        (999_600_000, "1 GB"),
        (14_230_000_000, "14.2 GB"),
        (2.5e12, "2500 GB"),
    ],
)
def test_sizes_read_like_sizes(count, words):
    assert size_in_words(count) == words
