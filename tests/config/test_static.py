from __future__ import annotations

import pytest

from runner.config import schema, static
from runner.config.static import Report, check_component, check_section


def problems(config, *, path="part", **options) -> list[str]:
    report = Report(**options)
    check_component(path, config, report)
    return [str(problem) for _, problem in report.found]


def test_a_sound_component_has_no_problem(toy):
    assert (
        problems({"_target_": f"{toy}.Everything", "whole": 1, "rate": 2, "colour": "green", "strange": object()}) == []
    )


def test_all_problems_at_once(toy):
    found = problems(
        {
            "_target_": f"{toy}.Everything",
            "count": 0,
            "share": 1.5,
            "colour": "gren",
            "numbers": "1,2",
            "shar": 0.5,
            "part": {"_target_": f"{toy}.Data", "widht": 3},
            "nested": {"x": {"_target_": "os.system"}},
        }
    )
    assert found == [
        "error: 'part.count' must be an integer of 1 or more, not 0",
        "error: 'part.share' must be a number from 0 to 1, not 1.5",
        "error: 'part.colour' must be one of red, green, not 'gren'\n  did you mean 'green'?   valid: green, red",
        "error: 'part.numbers' must be a list of integers, not '1,2'\n"
        "  lists are written in brackets, quoted for the shell: 'part.numbers=[1,2]'",
        found[4],
        "error: unknown key 'part.part.widht'\n  did you mean 'part.part.width'?   valid: depth, width",
        "error: missing value for 'part.part.width'\n  give it: part.part.width=VALUE",
        "error: 'part.nested.x._target_' 'os.system' is outside the allowed packages\n"
        "  allowed packages: runner, toy_plugin; add your own with plugins=[your_package]",
        "error: missing value for 'part.whole'\n  give it: part.whole=VALUE",
    ]
    assert found[4].startswith("error: unknown key 'part.shar'\n  did you mean 'part.share'?   valid: ")


def test_keys_of_nothing_are_refused():
    """`wrapper.rho=2` with `wrapper=none` would be accepted and ignored."""
    report = Report()
    check_component("wrapper", {"_target_": None, "rho": 2, "adaptive": True}, report, optional=True)
    ((key, problem),) = report.found
    assert key == "wrapper.rho"
    assert str(problem) == (
        "error: no effect of 'wrapper.rho', 'wrapper.adaptive' without an option of 'wrapper', which is none\n"
        "  choose the option that the key belongs to: wrapper=OPTION\n  see: runner ls wrapper"
    )


def test_components_in_lists_are_checked(toy):
    found = problems(
        {"_target_": f"{toy}.Everything", "whole": 1, "strange": [{"_target_": f"{toy}.function", "stepz": 1}]}
    )
    assert found == ["error: unknown key 'part.strange.0.stepz'\n  did you mean 'part.strange.0.steps'?   valid: steps"]


def test_missing_values_unless_an_option_may_leave_them(toy):
    config = {"_target_": f"{toy}.Everything", "whole": "???", "nested": {"a": {"b": "???"}}, "colour": "???"}
    assert problems(config) == [
        "error: missing value for 'part.whole'\n  give it: part.whole=VALUE",
        "error: missing value for 'part.nested.a.b'\n  give it: part.nested.a.b=VALUE",
        "error: missing value for 'part.colour'\n  give it: part.colour=red",
    ]
    assert problems(config, allow_missing=True) == []


def test_missing_values_inside_a_typed_mapping_do_not_hide_wrong_ones(toy):
    assert problems({"_target_": f"{toy}.Everything", "whole": 1, "table": {"a": "???", "b": "x"}}) == [
        "error: 'part.table' must be a mapping to numbers or null, not a mapping"
    ]


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ("text", "must be a mapping with a _target_, not 'text'"),
        (None, "must be a mapping with a _target_, not null"),
        ({}, "has no _target_"),
        ({"_target_": None}, "has no _target_"),
        ({"_target_": "os.system"}, "outside the allowed packages"),
        ({"_target_": "toy_plugin_evil.parts.X"}, "outside the allowed packages"),
        ({"_target_": 3}, "outside the allowed packages"),
        ({"_target_": ["runner"]}, "outside the allowed packages"),
        ({"_target_": "runner.weighting.pcgrad.PCGrab"}, "did you mean 'PCGrad'"),
        ({"_target_": "runner.weighting.pcgrd.PCGrad"}, "did you mean 'pcgrad'"),
        ({"_target_": "runner.files.os"}, "no class or function 'os'"),
        ({"_target_": "runner"}, "no module"),
        ({"_target_": "runner..x"}, "no module"),
    ],
)
def test_what_is_no_component(toy, config, what):
    (found,) = problems(config)
    assert what in found


def test_null_target_only_where_a_component_is_optional(toy):
    report = Report()
    check_component("merge", {"_target_": None}, report, optional=True)
    assert report.found == []


def test_sections_look_into_nested_dataclasses():
    report = Report()
    config = {"wandb": {"mode": "onlin", "projekt": "x", "tags": "a"}, "console": 3, "log_every": 0}
    check_section("tracking", config, schema.TrackingConfig, report)
    assert [path for path, _ in report.found] == [
        "tracking.console",
        "tracking.log_every",
        "tracking.wandb.mode",
        "tracking.wandb.projekt",
        "tracking.wandb.tags",
    ]


def test_soundness_looks_up_and_down():
    report = Report()
    report.add("a.b", "x")
    assert [report.sound(path) for path in ("a.b", "a", "a.b.c", "a.bc", "b")] == [False, False, False, True, True]


def test_enough_said():
    report = Report(done={"seed", "optimizer"})
    for path in ("seed", "optimizer.lr", "optimizers"):
        report.add(path, path)
    assert [path for path, _ in report.found] == ["optimizers"]


@pytest.mark.parametrize(
    ("name", "siblings", "elsewhere", "hint"),
    [
        ("lrr", ["lr", "eps"], [], "did you mean 'part.lr'?   valid: eps, lr"),
        ("max_steps", ["lr"], ["trainer.max_steps", "x.max_step"], "did you mean 'trainer.max_steps'?   valid: lr"),
        ("seed", ["select"], ["seed"], "did you mean 'seed'?   valid: select"),
        ("lrr", ["lr"], ["x.lrr"], "did you mean 'part.lr'?   valid: lr"),
        ("size", ["lr"], ["b.size", "a.size"], "did you mean 'a.size' or 'b.size'?   valid: lr"),
        ("zzz", ["lr"], ["a.size"], "valid: lr"),
        ("zzz", [], [], "it takes no keys"),
    ],
)
def test_suggestions(name, siblings, elsewhere, hint):
    assert static.suggest_key(name, siblings, "part.", elsewhere) == hint
