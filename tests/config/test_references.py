"""The published numbers that experiments quote: under the names of their own tasks and metrics, in their units."""

from __future__ import annotations

import pytest
import yaml

from runner.config.build import build
from runner.config.compose import compose
from runner.config.freeze import finalize
from runner.config.paths import config_root

FOLDER = config_root() / "experiment"
QUOTING = sorted(
    str(path.relative_to(FOLDER).with_suffix(""))
    for path in FOLDER.glob("**/*.yaml")
    if (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("reference")
)
ELSEWHERE = {"papers/mftcoder_balancing": {"humaneval"}, "papers/uncertainty_weighting": {"inverse_depth", "instance"}}
"""Tasks of the paper that the experiment does not have: shown, compared with nothing."""
SHARES = ("accuracy", "miou", "pixel_acc", "max_f", "ods_f", "mcc", "within")


@pytest.mark.slow
@pytest.mark.parametrize("experiment", QUOTING)
def test_references_are_named_and_scaled_as_our_metrics(experiment):
    config = finalize(compose("train", [f"+experiment={experiment}"]), data=False)
    tasks = config["mixture"]["tasks"]
    quoted = config["reference"]
    assert quoted.keys() - tasks.keys() == ELSEWHERE.get(experiment, set())
    for name in quoted.keys() & tasks.keys():
        assert quoted[name].keys() <= build(tasks[name], name).directions.keys(), name
    for name, metrics in quoted.items():
        for metric, value in metrics.items():
            assert not metric.startswith(SHARES) or 0 < value < 1, (name, metric)


@pytest.mark.parametrize(("experiment", "mean"), [("clip8", 0.680), ("clip8_l14", 0.807)], ids=["ViT-B/32", "ViT-L/14"])
def test_values_per_task_have_the_published_mean(experiment, mean):
    quoted = yaml.safe_load((FOLDER / f"{experiment}.yaml").read_text(encoding="utf-8"))["reference"]
    assert len(quoted) == 8
    assert round(sum(metrics["accuracy"] for metrics in quoted.values()) / 8, 3) == mean


def test_shares_of_small_test_sets_are_whole_examples():
    """Four digits of an accuracy on 277 or 872 examples tell whether it can be of that data set at all."""
    quoted = yaml.safe_load((FOLDER / "glue8.yaml").read_text(encoding="utf-8"))["reference"]
    for name, examples in (("rte", 277), ("sst2", 872), ("qnli", 5463), ("mnli", 9815)):
        value = quoted[name]["accuracy"]
        assert round(round(value * examples) / examples, 4) == value, name
