"""odsF, oisF and AP over a split, counted by helper processes while the model goes on."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import torch
from torch import Tensor

from runner.children import begin_child, starting_children
from runner.errors import RunFailed
from runner.tasks.boundaries.counts import OFF, ON, THRESHOLDS, UNKNOWN, boundary_counts
from runner.tasks.metrics import Metrics, Observe, Summarise

MOST_PROCESSES = 8
SMALL = 128 * 128
"""Pixels up to which a map is counted in a few milliseconds, in the process itself."""

SUMS: dict[str, tuple[int, ...]] = {"boundary": (3, len(THRESHOLDS)), "boundary_best": (3,)}
"""Matched, predicted and true pixels: at each threshold, and at each image's own best one."""


class BoundaryMetrics(Metrics):
    """The metrics of `Metrics`, with the sums `SUMS` beside the others.

    Of every image 8 bits a pixel go to a helper process and three counts a threshold come back; not more than two
    images per helper wait, so memory does not grow with the split. Counts are whole numbers: who counted them when does
    not show in the result.

    Args:
        max_dist: see `boundary_counts`. sums, observe, summarise: see `Metrics`.
        processes: helpers; None takes the cores that are left over on this machine, up to 8; with 0, and for small
            maps, the counting is done here.
    """

    def __init__(
        self,
        max_dist: float,
        sums: Mapping[str, tuple[int, ...]],
        observe: Observe,
        summarise: Summarise,
        processes: int | None = None,
    ) -> None:
        self.max_dist = max_dist
        self.processes = spare_cores() if processes is None else processes
        self._pool: ProcessPoolExecutor | None = None
        self._waiting: deque[Future[np.ndarray]] = deque()
        super().__init__(dict(sums) | SUMS, observe, summarise)

    def reset(self) -> None:
        super().reset()
        self._close()

    @torch.no_grad()
    def update(self, prediction: Tensor, target: Tensor) -> None:
        super().update(prediction, target)
        strength = (255 * torch.sigmoid(prediction.detach().float())).to(torch.uint8)[
            :, 0
        ]  # cut off, as released code does
        truth = torch.where(target > 0.5, ON, OFF).to(torch.uint8).masked_fill_(target.isnan(), UNKNOWN)[:, 0]
        pairs = zip(strength.cpu().numpy(), truth.cpu().numpy(), strict=True)
        for strength_HW, truth_HW in pairs:
            if self.processes == 0 or truth_HW.size <= SMALL:
                self._take(boundary_counts(strength_HW, truth_HW, self.max_dist))
            else:
                self._send(strength_HW, truth_HW)

    def compute(self) -> dict[str, float]:
        while self._waiting:
            self._receive()
        self._close()
        return super().compute()

    def _send(self, strength_HW: np.ndarray, truth_HW: np.ndarray) -> None:
        if self._pool is None:
            context = multiprocessing.get_context("forkserver")
            self._pool = ProcessPoolExecutor(self.processes, mp_context=context, initializer=begin_child)
        while len(self._waiting) >= 2 * self.processes:
            self._receive()
        with starting_children(), _told():  # a submission may start a process
            self._waiting.append(self._pool.submit(boundary_counts, strength_HW, truth_HW, self.max_dist))

    def _receive(self) -> None:
        with _told():
            counts = self._waiting.popleft().result()
        self._take(counts)

    def _take(self, counts: np.ndarray) -> None:
        matched, predicted, true = counts
        best = int(np.argmax(f_measure(matched, predicted, true)))  # the lowest of equally good thresholds
        for name, value in (("boundary", counts), ("boundary_best", counts[:, best])):
            self._sums[name] = self._sums[name] + torch.from_numpy(value.astype(np.float64)).to(self._device)

    def _close(self) -> None:
        self._waiting.clear()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


@contextlib.contextmanager
def _told():  # type: ignore[no-untyped-def]
    try:
        yield
    except BrokenProcessPool as error:
        raise RunFailed(
            "a process that counts edges has died", "mostly for lack of memory: lower trainer.eval_batch_size"
        ) from error


def spare_cores() -> int:
    """Cores of this process's share of the machine besides its own one, up to 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(0, min(MOST_PROCESSES, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1))


def f_measure(matched: np.ndarray, predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """2PR / (P + R) = 2·matched / (predicted + true); 0 where nothing is matched."""
    return 2 * matched / np.maximum(predicted + true, 1)


def boundary_scores(state: Mapping[str, Tensor]) -> dict[str, float]:
    """`ods_f`, `ois_f` and `ap` from the sums, as SEISM gathers them; NaN where the split has no true edge.

    ods_f: the best F over the 99 thresholds, one for the whole split. ois_f: F of the counts at each image's own best
    threshold. ap: the mean of the precision, interpolated linearly, at recall 0, 0.01, … 1, where recalls that no
    threshold reaches count as 0. (Dollár's toolbox also interpolates F between thresholds: the fourth digit.)
    """
    matched, predicted, true = state["boundary"].numpy()
    if not true.max(initial=0):
        return dict.fromkeys(("ods_f", "ois_f", "ap"), float("nan"))
    precision = np.where(predicted > 0, matched / np.maximum(predicted, 1), 1.0)
    recall, first = np.unique(matched / true, return_index=True)
    levels = np.arange(101) / 100
    reached = np.interp(levels, recall, precision[first], left=0.0, right=0.0)
    return {
        "ods_f": float(f_measure(matched, predicted, true).max()),
        "ois_f": float(f_measure(*state["boundary_best"].numpy())),
        "ap": float(reached.sum() / 100) if len(recall) > 1 else 0.0,
    }
