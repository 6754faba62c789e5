"""Memory in which batches travel: what arrives is what was sent, for as long as anything of it is referred to."""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler
from typing import Any

import pytest
import torch

from runner.mixtures import lending
from runner.mixtures.lending import MOST_LOANS, Lender, Lent, Shelf, empty
from runner.mixtures.workers import open_loader
from runner.types import Group


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    """A loading process without a process."""
    lender = Lender(1, multiprocessing.get_context("forkserver"))
    yield Shelf(lender, 0)
    lender.close()


def made_here(entry: tuple[int, int]) -> list[Group]:
    """A batch whose pixels are made where they will travel, and whose other tensors are not."""
    number, size = entry
    pixels = empty(2, 3, size, size)
    pixels[:] = number
    targets = {
        "classes": torch.full((2, size, size), number),
        "half": torch.full((3,), number, dtype=torch.bfloat16),
        "flags": torch.tensor([True, False, True]),
        "none": torch.empty(0, 4),
        "turned": torch.arange(12).view(3, 4).T,  # not contiguous
    }
    return [Group("made", {"pixels": pixels}, targets, [f"é{number}", "b"])]


def arrived(sent: Any) -> Any:
    return ForkingPickler.loads(ForkingPickler.dumps(sent))


def check(batch: list[Group], number: int, size: int) -> None:
    (group,), (expected,) = batch, made_here((number, size))
    assert (group.name, group.ids) == (expected.name, expected.ids)
    assert list(group.targets) == list(expected.targets)
    for name, tensor in {**expected.inputs, **expected.targets}.items():
        found = {**group.inputs, **group.targets}[name]
        assert found.dtype == tensor.dtype
        assert torch.equal(found, tensor)


def test_what_arrives_is_what_was_sent(shelf: Shelf) -> None:
    for number, size in enumerate((5, 5, 40, 3, 40)):  # larger than the memory, and smaller again
        sent = shelf.make(made_here, (number, size))
        assert isinstance(sent, Lent)
        check(arrived(sent), number, size)


def test_memory_is_used_again(shelf: Shelf) -> None:
    addresses = set()
    for number in range(20):
        batch = arrived(shelf.make(made_here, (number, 30)))
        addresses.add(batch[0].inputs["pixels"].data_ptr())
        check(batch, number, 30)
        del batch
    assert len(addresses) == 1
    assert list(shelf._memory) == [0]


def test_a_view_keeps_its_batch(shelf: Shelf) -> None:
    """A slice of one tensor is enough; the memory is lent again once it is gone."""
    kept = arrived(shelf.make(made_here, (7, 16)))[0].inputs["pixels"][1, 2, 3:].detach()
    gc.collect()
    assert list(shelf.lender.lent)[:2] == [1, 0]
    for number in range(5):
        check(arrived(shelf.make(made_here, (number, 16))), number, 16)
    assert (kept == 7).all()
    del kept
    assert not any(shelf.lender.lent)


def test_batches_beyond_the_memory_travel_as_they_are(shelf: Shelf) -> None:
    kept = [arrived(shelf.make(made_here, (n, 4))) for n in range(MOST_LOANS)]
    assert all(shelf.lender.lent)
    further = shelf.make(made_here, (99, 4))
    assert not isinstance(further, Lent)
    check(further, 99, 4)
    for number, batch in enumerate(kept):
        check(batch, number, 4)


def test_what_fails_lends_nothing(shelf: Shelf) -> None:
    def fails(entry: Any) -> Any:
        empty(3)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        shelf.make(fails, None)
    assert not any(shelf.lender.lent)
    assert lending._current is None
    check(arrived(shelf.make(made_here, (1, 4))), 1, 4)


def test_where_there_is_no_memory_batches_travel_as_they_are(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> int:
        raise OSError(28, "No space left on device")

    arrived(shelf.make(made_here, (1, 4)))
    with monkeypatch.context() as patch:
        patch.setattr(lending.os, "memfd_create", refuse)
        larger = shelf.make(made_here, (2, 50))
        assert not isinstance(larger, Lent)
        assert not any(shelf.lender.lent)
    check(arrived(shelf.make(made_here, (3, 4))), 3, 4)
    check(larger, 2, 50)


def test_batches_outlive_their_loader() -> None:
    """Many more than can be lent, all kept, from a real process; they stay as they are when it is gone."""
    count = MOST_LOANS + 4
    loader = open_loader(made_here, [(n, 20) for n in range(count)], num_workers=1, pin_memory=False)
    batches = list(loader)
    loader.close()
    assert loader._lender is not None
    assert loader._lender.number not in lending._borrowers
    for number, batch in enumerate(batches):
        check(batch, number, 20)
