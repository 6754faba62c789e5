"""`runner predict`: a trained dense model on pictures of one's own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from runner.cli.arguments import split_plain
from runner.cli.evaluate import trained_run
from runner.errors import EXIT_FAILED, Problem, UserError, suggest

HELP = """\
usage: runner predict RUN --image FILE|DIR --to DIR [options]

Runs a trained dense model on pictures of any size. Every picture gets a folder under --to, with
sheet.png (all tasks, with legends), TASK.png (the prediction in colours) and TASK_overlay.png
(classes, edges, saliency over the picture).

  --image FILE|DIR   a picture or a folder of them (JPEG, PNG, WebP, BMP, TIFF), with subfolders
  --to DIR           a folder; results of an earlier call are replaced picture by picture
  --checkpoint NAME  best, latest, or a step; default: best
  --raw              also TASK.npy: classes, metres, probabilities (H, W) or unit vectors (3, H, W)
  --size model       look at about as many pixels as in training; native: at every pixel there is
  --device NAME      auto, cpu or cuda; default: auto

examples:
  runner predict outputs/train/mtl_nyud --image kitchen.jpg --to predictions
  runner predict outputs/train/mtl_nyud --image kitchen.jpg --to large --size native
  runner predict outputs/train/mtl_nyud --image photos --to predictions --raw --checkpoint latest

exit codes: 0 done, 1 a picture failed, 2 something in the command is wrong
"""
VALUED = ("--image", "--to", "--checkpoint", "--size", "--device")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
CHOICES = {"--size": ("model", "native"), "--device": ("auto", "cpu", "cuda")}


def run(arguments: Sequence[str]) -> int:
    """Run the verb."""
    (path,), flags = split_plain(arguments, "predict", ["RUN"], valued=VALUED, flags=("--raw",))
    problems = [
        Problem(f"runner predict: {flag} is missing", f"runner predict {path} --image FILE --to DIR")
        for flag in ("--image", "--to")
        if flag not in flags
    ]
    for flag, choices in CHOICES.items():
        if flag in flags and flags[flag] not in choices:
            problems.append(Problem(f"{flag} is '{flags[flag]}'", suggest(flags[flag], choices) or ", ".join(choices)))
    to = Path(flags.get("--to", ".")).expanduser()
    if to.exists() and not to.is_dir():
        problems.append(Problem(f"--to: '{to}' is a file", "give a folder"))
    if "--image" in flags:
        problems += _nothing_to_read(Path(flags["--image"]).expanduser())
    if problems:
        raise UserError([*problems[:-1], Problem(problems[-1].what, problems[-1].hint, "runner predict --help")])
    checkpoint = flags.get("--checkpoint", "best")
    trained = trained_run(path, checkpoint)
    _refuse_others(trained)
    command = [sys.executable, "-m", "runner.predicting.worker", str(trained), flags["--image"], str(to), checkpoint]
    command += ["--size", flags.get("--size", "model"), "--device", flags.get("--device", "auto")]
    command += ["--raw"] if "--raw" in flags else []
    code = subprocess.run(command, check=False, env=dict(os.environ)).returncode
    return code if code >= 0 else EXIT_FAILED


def pictures(place: Path) -> list[Path]:
    """The pictures that a file or a folder names, in order."""
    if not place.is_dir():
        return [place]
    return sorted(p for p in place.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())


def _nothing_to_read(place: Path) -> list[Problem]:
    if not place.exists():
        return [Problem(f"--image: there is no '{place}'", "give a picture, or a folder of pictures")]
    if not pictures(place):
        return [Problem(f"--image: there is no picture in '{place}'", f"pictures end in {', '.join(SUFFIXES)}")]
    return []


def _refuse_others(trained: Path) -> None:
    """Runs without a dense task cannot colour pixels: say so before a model is built.

    Raises:
        UserError: the run has no dense task.
    """
    from runner.config.source import constant
    from runner.launching.rundir import RunDirectory

    tasks = RunDirectory.open(trained).config()["mixture"]["tasks"]
    kinds = {name: constant(str(task.get("_target_", "")), "kind") for name, task in tasks.items()}
    if not any(kind in ("dense", None) for kind in kinds.values()):
        raise UserError(
            f"the tasks of '{trained}' are not dense: {', '.join(f'{name} ({kind})' for name, kind in kinds.items())}",
            "runner predict colours pixels: give a run with segmentation, depth, normals, edges or saliency",
            "runner status outputs",
        )
