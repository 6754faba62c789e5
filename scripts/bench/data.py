"""What a dense example costs beyond decoding it, and whether two workers keep up with a step.

    python scripts/bench/data.py [--path NYUD_MT] [--examples 48] [--rounds 3] [--step-ms 100] [OVERRIDES…]

Part one, per core, in process time: reading and decoding the image and all maps of NYUD_MT alone, against the loader's
whole work (decode, joint augmentation, collate) in the memory that a worker has, with examples made by the loader and
with examples made on the accelerator; the three take turns, and figures are ratios (bar: 0.8 of decoding alone).

Part two: two workers, a batch of 8, and a step that does nothing for --step-ms milliseconds: the process time of a
worker for a batch, sending included, and on the wall clock the share of the time that steps wait for data (`data_wait`
of a run; bar: none at 100 ms). The second says something on free cores only: how much of the time the workers stood in
line for one is said beside it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from runner.config.build import build
from runner.config.compose import compose
from runner.config.freeze import finalize
from runner.mixtures.dense import DenseDataset
from runner.mixtures.lending import Lender, Shelf
from runner.mixtures.stream import _Draw, _MakeBatch
from runner.mixtures.workers import open_loader

BATCH = 8


def dataset(overrides: list[str], device: str) -> DenseDataset:
    """The training set of a dense mixture."""
    config = finalize(compose("train", [*overrides, f"mixture.augment.device={device}"]))
    (found,) = build(config["mixture"], config["data_root"], where="mixture").datasets("train").values()
    return found


def work(found: DenseDataset) -> Callable[[int], object]:
    """What a loading process does for one batch."""
    make = _MakeBatch({found.name: found}, 0, None, torch.device("cpu"))
    lender = Lender(1, multiprocessing.get_context("forkserver"))
    shelf = Shelf(lender, 0)

    def batch(n: int) -> None:
        shelf.make(make, [_Draw(found.name, [(0, (n * BATCH + i) % len(found)) for i in range(BATCH)])])
        lender.lent[0] = 0  # as if it had been used and dropped

    return batch


def decode(found: DenseDataset) -> Callable[[int], object]:
    """Reading alone."""
    indices = found.indices
    return lambda n: [found.source.read(int(indices[(n * BATCH + i) % len(found)]), found.tasks) for i in range(BATCH)]


def per_example_ms(function: Callable[[int], object], batches: int) -> float:
    """Process time of an example."""
    function(0)
    began = time.process_time()
    for n in range(batches):
        function(n)
    return 1e3 * (time.process_time() - began) / (batches * BATCH)


def waiting(found: DenseDataset, step_s: float, steps: int = 40, warm_up: int = 8) -> tuple[float, float, float]:
    """Two workers beside steps of this length; what comes after loading is not done.

    Returns:
        The share of the time that steps wait, ms of a worker's process time for a batch, and the share of the time in
        which workers could have worked that they stood in line for a core.
    """
    plan = [[_Draw(found.name, [(0, (n * BATCH + i) % len(found)) for i in range(BATCH)])] for n in range(steps)]
    make = _MakeBatch({found.name: found}, 0, None, torch.device("cpu"))
    # Workers run ahead of the steps that are counted, by as much at the end as at the beginning.
    loader = open_loader(make, plan + plan[:warm_up], num_workers=2, pin_memory=False)
    pids = [worker.pid for worker in loader._workers]
    waited, began, worked, queued = 0.0, 0.0, 0.0, 0.0
    for n in range(steps):
        if n == warm_up:
            began, waited, (worked, queued) = time.perf_counter(), 0.0, scheduled_ms(pids)
        asked = time.perf_counter()
        next(loader)
        waited += time.perf_counter() - asked
        time.sleep(step_s)
    total = time.perf_counter() - began
    worked, queued = (after - before for after, before in zip(scheduled_ms(pids), (worked, queued), strict=True))
    loader.close()
    return waited / total, worked / (steps - warm_up), queued / (worked + queued)


def scheduled_ms(pids: Sequence[int]) -> tuple[float, float]:
    """How long other processes ran, and stood in line for a core; their threads but the first do next to nothing."""
    fields = [Path(f"/proc/{pid}/schedstat").read_text().split() for pid in pids]  # Linux
    return sum(int(f[0]) for f in fields) / 1e6, sum(int(f[1]) for f in fields) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", default="NYUD_MT")
    parser.add_argument("--examples", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--step-ms", type=float, default=100)
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_args()
    torch.set_num_threads(1)
    overrides = ["mixture=nyud", f"mixture.path={given.path}", *given.overrides]
    parts = {
        "decoding alone": decode(dataset(overrides, "loader")),
        "made by the loader": work(dataset(overrides, "loader")),
        "made on the accelerator": work(dataset(overrides, "accelerator")),
    }
    batches = max(1, given.examples // BATCH)
    times: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(given.rounds):
        for name, function in parts.items():
            times[name].append(per_example_ms(function, batches))
    alone = times["decoding alone"]
    for name, found in times.items():
        ratio = statistics.median(a / b for a, b in zip(alone, found, strict=True))
        print(f"{name:<24} {statistics.median(found):6.2f} ms an example   {ratio:.2f} of decoding alone")
    if given.step_ms > 0:
        where_made = {"loader": "by the loader", "accelerator": "on the accelerator"}
        for where in where_made:
            share, worked, queued = waiting(dataset(overrides, where), given.step_ms / 1e3)
            print(
                f"made {where_made[where]:<19} {worked:6.1f} ms of a worker for a batch of {BATCH}, with two one in"
                f" {worked / 2:.0f} ms; steps of {given.step_ms:g} ms wait {share:.1%} of the time"
                f" (workers stood in line for a core {queued:.0%} of theirs)"
            )


if __name__ == "__main__":
    main()
