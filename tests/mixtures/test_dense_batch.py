"""Batches made in place are those that `collate` makes of the same examples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from runner.errors import UserError
from runner.mixtures.collate import collate
from runner.mixtures.dense import DenseDataset
from runner.mixtures.dense_batch import DenseBatch
from tests.mixtures.test_stored import GEOMETRIES, made


def both(dataset: DenseDataset, indices: list[int], seeds: list[int] | None) -> tuple[Any, Any]:
    def rng(i: int) -> np.random.Generator | None:
        return None if seeds is None else np.random.default_rng(seeds[i])

    batch = DenseBatch(dataset, len(indices))
    for i, index in enumerate(indices):
        batch.add(index, rng(i))
    return collate("made", [dataset.example(index, rng(i)) for i, index in enumerate(indices)]), batch.group()


@pytest.mark.parametrize("geometry", [*GEOMETRIES, "evaluation"])
@pytest.mark.parametrize("indices", [[0, 1, 2, 3], [2, 1, 5, 0], [2, 5]], ids=str)  # 2 and 5 have no depth
def test_the_same_batches(geometry: str, indices: list[int]) -> None:
    dataset = made([(30, 40), (48, 20)], **GEOMETRIES.get(geometry, {}))
    expected, found = both(dataset, indices, None if geometry == "evaluation" else [3, 4, 5, 6])
    assert (found.name, found.ids) == (expected.name, expected.ids)
    assert list(found.targets) == list(expected.targets)
    assert ("depth" in found.targets) == (indices != [2, 5])
    for name, tensor in {**expected.inputs, **expected.targets}.items():
        other = {**found.inputs, **found.targets}[name]
        assert other.dtype == tensor.dtype
        torch.testing.assert_close(other, tensor, rtol=0, atol=0, equal_nan=True)


def test_a_value_that_is_no_class_is_named() -> None:
    class Wrong:
        layers = made([(30, 40)]).source.layers

        def read(self, index: int, wanted: Any) -> Any:
            record = made([(30, 40)]).source.read(index, wanted)
            record.maps["segmentation"][2, 3] = 77
            return record

    dataset = DenseDataset("made", ["segmentation"], Wrong(), range(1), size=(30, 40))
    with pytest.raises(UserError, match="data set 'made', example '0', task 'segmentation': stored label 77"):
        DenseBatch(dataset, 1).add(0, None)
