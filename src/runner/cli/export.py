"""`runner export`: a run as a Hugging Face folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from runner.cli.arguments import split_plain
from runner.cli.evaluate import trained_run
from runner.errors import EXIT_FAILED, UserError

HELP = """\
usage: runner export RUN --to DIR [--checkpoint best] [--license ID] [--data-root DIR]

Writes a trained run as a folder that other programs read: the backbone for transformers'
from_pretrained (HRNet: for timm's create_model), heads and the rest as safetensors, tokenizer or
image processor, a model card.
Averaged weights (trainer.ema) are taken where the run keeps them. Nothing is ever overwritten.

  --to DIR           a new folder, which can start another run: backbone.pretrained=DIR
  --checkpoint NAME  best, latest, or a step; default: best
  --license ID       for the model card, such as apache-2.0
  --data-root DIR    where the data lies now: texts and tables decide what the model reads

examples:
  runner export outputs/train/demo --to exported/demo
  runner export outputs/train/demo --to exported/demo-800 --checkpoint 800
  runner train +experiment=demo backbone.pretrained=exported/demo seed=1

exit codes: 0 done, 1 it could not be written, 2 something in the command is wrong
"""
VALUED = ("--to", "--checkpoint", "--license", "--data-root")


def run(arguments: Sequence[str]) -> int:
    """Run the verb."""
    (path,), flags = split_plain(arguments, "export", ["RUN"], valued=VALUED)
    if "--to" not in flags:
        raise UserError("runner export: --to DIR is missing", f"runner export {path} --to DIR", "runner export --help")
    to = Path(flags["--to"]).expanduser()
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UserError(f"'{to}' exists already", "an export never overwrites: choose another folder with --to DIR")
    licence = flags.get("--license")
    if licence is not None and not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", licence):
        raise UserError(f"--license '{licence}' is not an identifier", "such as apache-2.0, mit, cc-by-4.0 or other")
    checkpoint = flags.get("--checkpoint", "best")
    trained = trained_run(path, checkpoint)
    command = [sys.executable, "-m", "runner.exporting.worker", str(trained), str(to), checkpoint]
    for flag in ("--license", "--data-root"):
        if flag in flags:
            command += [flag, str(Path(flags[flag]).expanduser()) if flag == "--data-root" else flags[flag]]
    code = subprocess.run(command, env=dict(os.environ) | {"CUDA_VISIBLE_DEVICES": ""}, check=False).returncode
    return code if code >= 0 else EXIT_FAILED
