"""What an architecture is: one group → predictions of the tasks one asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from runner.backbones.base import Backbone
from runner.errors import Problem, UserError
from runner.types import Group, Prediction


class Architecture(nn.Module):
    """Base of all architectures.

    Attributes:
        heads: task → head.
        needs: what it works on: a backbone's features; the states between its stages (`runner.backbones.staged`); or
            such states that are maps.
        representation: the attribute that holds the one trunk whose output all tasks share, and all shared parameters;
            None where there is no such trunk. Weightings may take gradients there (`weighting.mode=representation`).
    """

    heads: nn.ModuleDict
    needs: ClassVar[Literal["features", "stages", "maps"]] = "features"
    representation: ClassVar[str | None] = None

    def forward(self, group: Group, tasks: Sequence[str]) -> dict[str, Prediction]:
        """Predictions by task name, for the asked-for tasks and with no work for the others.

        Where gradients are on, a prediction may come with others to train beside it (`Supervised`).
        """
        raise NotImplementedError

    def penalty(self) -> Tensor | None:
        """A regulariser of the parameters, a scalar that does not depend on data; None where there is none.

        The loop adds its gradient once per step to that of the weighted losses: it belongs to no task, so no
        weighting sees it.
        """
        return None

    def study(
        self, measure: Callable[[], Mapping[str, Mapping[str, float]]], cost: Callable[[Sequence[str]], int]
    ) -> dict[str, Any]:
        """More for result.json, of architectures that can be set in several ways or that searched; most have nothing.

        A text under "hint" also ends what the terminal shows of the result.

        Args:
            measure: task → metric → value on the validation split, of the model as it is set at the moment.
            cost: FLOPs of a forward pass of one example for some tasks.
        """
        return {}

    def all_backbones(self) -> list[Backbone]:
        """Every backbone, for layer-wise learning rates and summaries."""
        raise NotImplementedError


def check_kinds(backbone: Backbone, tasks: Mapping[str, Any]) -> None:
    """Refuse tasks whose features the backbone cannot make; all at once."""
    words = {"dense": "a feature pyramid", "pooled": "one vector per example", "token": "tokens"}
    served = ", ".join(backbone.serves)
    problems = [
        Problem(
            f"task '{name}' is {task.kind} and needs {words[task.kind]}, which {type(backbone).__name__} does not give",
            f"this backbone serves {served} tasks; choose another one, or drop the task with tasks=[…]",
            "runner ls backbone",
        )
        for name, task in tasks.items()
        if task.kind not in backbone.serves
    ]
    if problems:
        raise UserError(problems)
