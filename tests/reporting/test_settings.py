"""Which runs belong together, and in what settings differ."""

from __future__ import annotations

from pathlib import Path

from runner.reporting.read import Run
from runner.reporting.settings import collect, command_keys, find_columns, text_value


def make(config: dict, argv: str = "", **info: object) -> Run:
    return Run(Path("x"), "completed", info={"argv": ["train", *argv.split()], **info}, config=config)


def weighting(name: str, **keys: object) -> dict:
    return {"weighting": {"_target_": f"runner.weighting.{name[0]}.{name[1]}", **keys}}


EQUAL, CAGRAD = ("equal", "Equal"), ("cagrad", "CAGrad")


def columns(*runs: Run, axes: list[str] | None = None):
    settings = collect(runs, lambda run: run.config)
    return find_columns(settings, axes or []), settings


def test_seeds_places_and_devices_do_not_make_a_setting():
    runs = [make({"seed": i, "output_dir": str(i), "launch": {"x": i}, "trainer": {"log_every": i}}) for i in range(3)]
    (setting,) = collect(runs, lambda run: run.config)
    assert list(setting.runs) == [0, 1, 2]


def test_seeds_are_in_the_order_of_numbers():
    (setting,) = collect([make({"seed": seed}) for seed in (10, 2, 1)], lambda run: run.config)
    assert list(setting.runs) == [1, 2, 10]


def test_of_repeated_runs_the_newest_counts():
    old, new = make({"seed": 1}, created="2026-01-01"), make({"seed": 1}, created="2026-02-01")
    (setting,) = collect([new, old], lambda run: run.config)
    assert setting.runs[1] is new and setting.other == [old]


def test_an_option_is_one_column_however_many_keys_it_brings():
    found, settings = columns(make(weighting(EQUAL, scale="mean")), make(weighting(CAGRAD, c=0.4, rescale=1)))
    assert found.names == ["weighting"]
    assert [setting.cells["weighting"] for setting in settings] == ["equal", "cagrad"]
    assert [setting.label for setting in settings] == ["equal", "cagrad"]


def test_a_key_of_an_option_is_a_column_when_it_varies_within_it():
    runs = [make(weighting(CAGRAD, c=c)) for c in (0.2, 0.4)]
    found, settings = columns(make(weighting(EQUAL)), *runs)
    assert found.names == ["weighting", "weighting.c"]
    assert [setting.cells["weighting.c"] for setting in settings] == ["", "0.2", "0.4"]


def test_what_only_merges_have_does_not_vary():
    none, ties = {"merge": {"_target_": None}}, {"merge": {"_target_": "runner.merging.rules.TIES"}}
    runs = [make(none), make(ties | {"merging": {"examples": 400}}), make(ties | {"merging": {"examples": 800}})]
    found, _ = columns(*runs[:2])
    assert found.names == ["merge"] and not found.implied
    found, _ = columns(*runs)
    assert found.names == ["merge", "merging.examples"]


def test_words_of_the_command_name_options_that_share_a_target():
    swin = {"_target_": "runner.backbones.swin.Swin"}
    runs = [
        make({"backbone": swin | {"size": size}, "seed": 0}, f"backbone=swin_{size} seed=0")
        for size in ("tiny", "large")
    ]
    found, settings = columns(*runs, axes=["backbone"])
    assert found.names == ["backbone"] and found.implied == ["backbone.size"]
    assert [setting.label for setting in settings] == ["swin_tiny", "swin_large"]


def test_what_the_command_varies_is_always_a_column():
    runs = [
        make({"optimizer": {"lr": lr, "wd": wd}}, f"optimizer.lr={lr} optimizer.wd={wd}")
        for lr, wd in ((0.1, 1.0), (0.2, 2.0), (0.3, 2.0))
    ]
    found, _ = columns(*runs)
    assert found.names == ["optimizer.lr", "optimizer.wd"] and not found.implied


def test_many_keys_that_differ_together_are_named_instead():
    found, _ = columns(*(make({f"key{k}": i for k in range(9)}) for i in range(3)))
    assert found.names == ["key0"] and found.implied == [f"key{k}" for k in range(1, 9)]


def test_what_does_not_vary_is_constant():
    runs = [make(weighting(EQUAL) | {"optimizer": {"lr": lr, "eps": 1e-8}}) for lr in (1, 2)]
    found, _ = columns(*runs)
    assert dict(found.constant) == {"weighting": "equal", "optimizer.eps": "1e-08"}


def test_one_setting_has_no_columns():
    found, settings = columns(make({"seed": 0}), make({"seed": 1}))
    assert found.names == [] and settings[0].label == ""


def test_keys_of_all_commands():
    settings = collect([make({"a": 1}, "a=1 +b=2 ~c"), make({"a": 2}, "a=2 d=1")], lambda run: run.config)
    assert command_keys(settings) == ["a"]


def test_values_in_a_line():
    assert text_value([0.9, 1e-8, None, True]) == "[0.9,1e-08,null,true]"
    assert text_value({"a": [1]}) == "{a:[1]}"
