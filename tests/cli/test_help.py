"""What `--help` says, word for word, and the surface of the command line: a change here is a change for every user."""

from __future__ import annotations

import importlib
import re
from dataclasses import fields
from pathlib import Path

import pytest

from runner.cli import arguments, completion
from runner.cli.main import VERBS, help_text
from runner.config import paths, schema

GOLDEN = Path(__file__).with_name("golden")


def texts() -> dict[str, str]:
    return {"runner": help_text()} | {
        verb: importlib.import_module(f"runner.cli.{module}").HELP for verb, (module, _) in VERBS.items()
    }


def surface() -> str:
    """Verbs, flags, groups and keys, one per line."""
    lines = [f"verb {verb}" for verb in VERBS]
    lines += [f"flag {flag}" for flag in sorted({*arguments.HYDRA_VALUED, *arguments.HYDRA_PLAIN, "--info", "-i"})]
    lines += [f"flag {verb} {flag}" for verb, flags in completion.FLAGS.items() for flag in flags]
    lines += [f"group {group}" for group in paths.GROUPS]
    for prefix, cls in (
        ("train", schema.TrainKeys),
        ("eval", schema.EvalKeys),
        ("trainer", schema.TrainerConfig),
        ("tracking", schema.TrackingConfig),
        ("tracking.wandb", schema.WandbConfig),
        ("launch", schema.LaunchConfig),
        ("launch.slurm", schema.SlurmConfig),
        ("finetune", schema.FinetuneConfig),
        ("merging", schema.MergingConfig),
        ("merge", schema.MergeKeys),
        ("tune", schema.TuneConfig),
    ):
        lines += [f"key {prefix}.{f.name}: {f.type}" for f in fields(cls)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", texts())
def test_help_is_as_written_down(name):
    assert texts()[name] == (GOLDEN / f"{name}.txt").read_text()


def test_the_surface_is_as_written_down():
    assert surface() == (GOLDEN / "surface.txt").read_text()


@pytest.mark.parametrize("name", texts())
def test_help_fits_a_screen_and_shows_three_commands(name):
    lines = texts()[name].splitlines()
    assert len(lines) <= (28 if name in ("runner", "data") else 24)
    assert max(map(len, lines)) <= 100
    after = lines[lines.index("examples:") + 1 :]
    assert len([line for line in after if re.match(r"  .*\brunner\b ", line)]) >= 3


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"], ["help"]])
def test_help_of_the_command(runner, arguments):
    answer = runner(*arguments)
    assert (answer.code, answer.out, answer.err) == (0, help_text(), "")


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_wherever_the_flag_stands(runner, verb):
    for line in ([verb, "--help"], [verb, "x=1", "-h"], ["help", verb]):
        answer = runner(*line)
        assert (answer.code, answer.out) == (0, texts()[verb])
