"""Rules against the numbers of mergekit 0.1.5, computed once with its `merge_tensors` on the tensors in the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from runner.merging.memory import merge_in_memory
from runner.merging.rules.average import Average
from runner.merging.rules.model_stock import ModelStock
from runner.merging.rules.sce import ArceeFusion, Sce
from runner.merging.rules.slerp import Karcher, Multislerp, Nearswap, Nuslerp, Slerp
from runner.merging.rules.task_arithmetic import TaskArithmetic
from runner.merging.rules.ties import Ties
from runner.merging.sources import Models
from runner.merging.transforms.trim import Breadcrumbs

GOLDEN = json.loads((Path(__file__).parent / "mergekit.json").read_text())
BASE, EXPERTS = torch.tensor(GOLDEN["base"]), [torch.tensor(e) for e in GOLDEN["experts"]]

CASES = {
    "linear": (Average(weights=[1.0, 2.0, 1.0], normalize=True), 3, False),
    "task_arithmetic": (TaskArithmetic(weights=[0.5, 0.3, 0.2], scale=0.8), 3, True),
    "ties normalize=True": (Ties(density=0.5, scope="tensor"), 3, True),
    "ties normalize=False": (Ties(density=0.5, scope="tensor", aggregate="sum"), 3, True),
    "ties weights": (Ties(density=1.0, weights=[0.5, 0.3, 0.2]), 3, True),
    "breadcrumbs": (TaskArithmetic(scale=1.0, pre=[Breadcrumbs(largest=0.1, smallest=0.3)]), 3, True),
    "nuslerp": (Nuslerp(weights=[0.7, 0.3]), 2, False),
    "nuslerp rows": (Nuslerp(weights=[0.7, 0.3], by="columns"), 2, False),  # mergekit's rows run along dimension 0
    "nuslerp columns": (Nuslerp(weights=[0.7, 0.3], by="rows"), 2, False),
    "nuslerp base": (Nuslerp(weights=[0.7, 0.3]), 2, True),
    "karcher": (Karcher(steps=200, tolerance=1e-9), 3, False),
    "multislerp": (Multislerp(weights=[0.5, 0.3, 0.2]), 3, False),
    "model_stock": (ModelStock(), 3, True),
    "model_stock 2": (ModelStock(), 2, True),
    "sce": (Sce(density=0.4), 3, True),
    "nearswap": (Nearswap(t=0.05), 1, True),
    "arcee_fusion": (ArceeFusion(), 1, True),
}


def test_every_golden_case_is_looked_at():
    assert set(GOLDEN["cases"]) - set(CASES) == {"slerp base"}  # below


@pytest.mark.parametrize("name", CASES)
def test_the_same_numbers(name):
    merge, count, based = CASES[name]
    # Model stock's formula leaves [0, 1] where task vectors disagree, which we do not follow: they share a part.
    shared = torch.tensor(GOLDEN["shared"]) if "stock" in name else 0.0
    experts = {str(t): {"w": e + shared} for t, e in enumerate(EXPERTS[:count])}
    found = merge_in_memory(merge, Models.in_memory(experts, {"w": BASE} if based else None)).tensors["w"]
    torch.testing.assert_close(found, torch.tensor(GOLDEN["cases"][name]), rtol=1e-4, atol=1e-5)


def test_slerp():
    models = Models.in_memory({"a": {"w": BASE}, "b": {"w": EXPERTS[0]}})
    found = merge_in_memory(Slerp(t=0.3), models).tensors["w"]
    torch.testing.assert_close(found, torch.tensor(GOLDEN["cases"]["slerp base"]), rtol=1e-4, atol=1e-5)
