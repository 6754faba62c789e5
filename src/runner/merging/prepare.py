"""From the configuration of `runner merge` to an opened, checked plan; everything that is wrong is said at once."""

from __future__ import annotations

from typing import Any

from runner.config.build import build
from runner.errors import Problem, UserError
from runner.merging.base import Arrangement, Merge, refuse
from runner.merging.extras import compare_configs, compare_tokenizers
from runner.merging.open import open_adapters, open_models
from runner.merging.plan import Plan, Settings, make_plan
from runner.merging.sources import Models
from runner.merging.vocabulary import Tokens, reconcile


def prepare(config: dict[str, Any]) -> tuple[Merge, Plan, Tokens | None]:
    """Build the strategy, open the models, decide about every tensor.

    Returns:
        The strategy, the plan, and the joined vocabulary where `embed=union` changed it.

    Raises:
        UserError: with every problem.
    """
    problems: list[Problem] = []
    merge = models = None
    try:
        merge = build(config["merge"], where="merge")
    except UserError as error:
        problems += error.problems
    try:
        opener = open_adapters if isinstance(merge, Arrangement) and merge.adapters else open_models
        models = opener(config["models"], config["base"], config["names"])
    except UserError as error:
        problems += error.problems
    if models is not None:
        problems += compare_configs(models)
    if problems or merge is None or models is None:
        raise UserError(problems)
    if isinstance(merge, Arrangement):
        refuse(merge.check(models.names, models.base is not None))
        models = Models({"result": merge.arrange(models)})
        merge.weights, merge.layers, merge.normalize = None, {}, False  # they are part of the result now
    models, tokens = reconcile(models, config["embed"])
    settings = Settings(tuple(config["include"]), tuple(config["exclude"]), config["dtype"], config["batchnorm"])
    plan = make_plan(merge, models, settings)
    if tokens is None:
        plan.notes += compare_tokenizers(models)
    return merge, plan, tokens
