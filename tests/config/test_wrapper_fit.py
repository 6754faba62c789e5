"""Wrappers and settings that do not go together are refused before anything starts."""

from __future__ import annotations

import pytest

from runner.config.compose import compose
from runner.config.freeze import finalize
from runner.errors import UserError


def frozen(*overrides: str) -> dict:
    return finalize(compose("train", ["mixture=rooms", *overrides]))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["wrapper=task_sam", "weighting=mgda_ub"], "TaskSAM needs the gradients of the parameters"),
        (["wrapper=rep_mtl", "weighting=cagrad", "weighting.mode=gram"], "set weighting.mode=parameters"),
        (["wrapper=task_sam", "weighting=modo"], "compares those of parts of the batch"),
        (["wrapper=task_sam", "trainer.log_losses=true"], "trainer.log_losses=true does not go with TaskSAM"),
        (["wrapper=rep_mtl", "trainer.compile=true"], "second derivatives that RepMTL needs"),
        (["wrapper=task_sam", "wrapper.rho=-1"], "wrapper.rho"),
        (["wrapper=task_sma"], "task_sam"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_what_cannot_work_is_said(overrides: list[str], said: str) -> None:
    with pytest.raises(UserError) as error:
        frozen(*overrides)
    assert said in str(error.value)


@pytest.mark.parametrize("wrapper", ["none", "task_sam", "rep_mtl", "svd_reweight"])
def test_what_can_work_is_accepted(wrapper: str) -> None:
    assert frozen(f"wrapper={wrapper}", "weighting=cagrad")["wrapper"].get("_target_") is None or wrapper != "none"


def test_published_numbers_do_not_affect_weights() -> None:
    from runner.config.signature import weights_diff

    assert weights_diff(frozen(), frozen("reference={depth: {rmse: 0.5}}")) == []
