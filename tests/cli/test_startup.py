"""Start-up: how long the command takes to answer, and what it does not import."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "datasets", "accelerate", "wandb", "pandas", "scipy", "sklearn")


def cpu_seconds(*arguments: str) -> float:
    """The best of three: CPU time of the whole process, which a busy machine does not stretch."""
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "runner", *arguments], capture_output=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(times)


@pytest.mark.parametrize(
    ("arguments", "bar"),
    [
        (["--help"], 0.3),
        (["train", "--help"], 0.3),
        (["ls"], 0.5),
        (["__complete", "train", "weighting=pc"], 0.3),
        (["train", "+experiment=dmo"], 2.0),
        (["train", "+experiment=demo", "optimizer.lrr=1", "weighting=pcgrd", "trainer.batch_size=x"], 2.0),
    ],
)
def test_bars(arguments, bar):
    assert cpu_seconds(*arguments) <= bar


def modules_after(*arguments: str) -> set[str]:
    """Top-level modules imported by a command line, the front end left out."""
    code = (
        "import sys, contextlib, io\n"
        "from runner.cli.main import main\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):\n"
        "    main(sys.argv[1:])\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "hydra"),
    [
        (["--help"], False),
        (["trian"], False),
        (["ls"], False),
        (["ls", "weighting", "--json"], False),
        (["show", "weighting/pcgrad"], False),
        (["cp", "weighting/pcgrad", "my"], False),
        (["status"], False),
        (["diff", "weighting/equal", "weighting/pcgrad"], False),
        (["completion", "bash"], False),
        (["__complete", "train", "trainer."], False),
        (["train", "--help"], False),
        (["train", "--dryrun"], False),
        (["resume", "nowhere"], False),
        (["eval", "nowhere"], True),
        (["validate", "+experiment=demo"], True),
        (["validate", "mixture=intents", "backbone=bert"], True),
        (["train", "+experiment=demo", "optimizer.lrr=1"], True),
        (["train", "+experiment=demo", "--cfg", "job"], True),
        (["tune", "--help"], False),
        (["tune", "+experiment=demo", "optimizer.lr=interval(1,2)", "--dry-run"], True),
        (["export", "nowhere", "--to", "ex"], False),
        (["predict", "nowhere", "--image", "data", "--to", "ex"], False),
        (["rerun", "nowhere"], False),
        (["data", "list"], False),
        (["data", "verify", "nyud"], False),
        (["data", "prepare", "cityscapes", "--root", "sets"], False),
    ],
)
def test_no_torch_and_no_hydra_before_it_is_needed(arguments, hydra):
    Path("data").mkdir()
    found = modules_after(*arguments)
    assert found.isdisjoint(HEAVY)
    assert ("hydra" in found) == hydra
