"""What several tests need: running the command line as a user does, in a folder of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file
from torch import Tensor

TINY = [
    "mixture=rooms",
    "mixture.size=[32,32]",
    "mixture.train=48",
    "mixture.validation=8",
    "mixture.test=8",
    "backbone=resnet",
    "backbone.size=tiny",
    "trainer.batch_size=8",
    "trainer.num_workers=0",
    "trainer.panels=0",
    "trainer.checkpoint_every=4",
    "trainer.eval_every=8",
    "trainer.log_every=2",
    "tracking=jsonl",
    "tracking.plots=false",
    "launch.threads=1",
]
"""A dense run of seconds."""


def environment(**extra: str) -> dict[str, str]:
    """Quiet, offline, one thread."""
    return (
        dict(os.environ)
        | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "NO_COLOR": "1"}
        | extra
    )


def runner(
    *arguments: str, timeout: float = 240, cwd: Path | None = None, **extra: str
) -> subprocess.CompletedProcess[str]:
    """Run `runner ARGUMENTS` to its end."""
    command = [sys.executable, "-m", "runner", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, cwd=cwd, env=environment(**extra), check=False
    )


def train(output_dir: Path, *overrides: str, expect: int = 0, **extra: str) -> Path:
    """Train, check the exit code, and return the run's directory."""
    done = runner("train", *overrides, f"output_dir={output_dir}", **extra)
    assert done.returncode == expect, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return newest_run(output_dir)


def newest_run(output_dir: Path) -> Path:
    """The run claimed last under `output_dir`."""
    return max((p.parent for p in output_dir.glob("*/*/*/run.json")), key=lambda p: p.stat().st_ctime)


def frozen(run: Path) -> dict[str, Any]:
    """A run's configuration."""
    return yaml.safe_load((run / "config.yaml").read_text())


def weights(run: Path, which: str = "latest") -> dict[str, Tensor]:
    """The model in a run's checkpoint."""
    return load_file(run / "checkpoints" / which / "model.safetensors")


def rows(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
