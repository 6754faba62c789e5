"""`runner predict`: a trained run on inputs of one's own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from runner.cli.arguments import split_plain
from runner.cli.evaluate import trained_run
from runner.errors import EXIT_FAILED, Problem, UserError, suggest

HELP = """\
usage: runner predict RUN --image FILE|DIR | --text TEXT | --file FILE [--to DIR] [options]

Runs a trained run on your own inputs; every task answers every input that it takes. Dense tasks
give each picture a folder in DIR: sheet.png, TASK.png, TASK_overlay.png; all others fill
DIR/predictions.csv, one row per input, and print a few answers, or how often each was given.

  --image FILE|DIR   a picture or a folder of them (JPEG, PNG, WebP, BMP, TIFF), with subfolders
  --text TEXT        a text; repeat it for more. --pair TEXT: the second one, for tasks of two
  --file FILE        .csv .tsv .jsonl .json .parquet .txt, with the columns of training; .sdf .xyz
  --to DIR           results replace earlier ones; not needed for --text and for one picture
  --tasks A,B        these tasks alone
  --columns A[,B]    where FILE has its texts or pictures, if it is not where training's had them
  --keep A,B         columns of FILE to copy beside the answers
  --format csv       or jsonl: one object per line, with lists as lists
  --raw              every class' probability; dense: TASK.npy (classes, metres, probabilities, …)
  --size native      dense: look at every pixel, not at about as many as in training (model)
  --checkpoint best|latest|STEP  --batch-size N  --device auto|cpu|cuda  --data-root DIR

examples:
  runner predict outputs/train/mtl_nyud --image photos --to predictions --raw
  runner predict outputs/train/intents --text "wake me at six" --text "is it raining?"
  runner predict outputs/train/adult --file people.csv --keep id --to predictions

exit codes: 0 done, 1 an input could not be read, 2 something in the command is wrong
"""
VALUED = (
    "--image", "--file", "--to", "--tasks", "--columns", "--keep", "--format", "--size", "--checkpoint", "--batch-size",
    "--device", "--data-root",
)  # fmt: skip
REPEATED = ("--text", "--pair")
CHOICES = {"--size": ("model", "native"), "--device": ("auto", "cpu", "cuda"), "--format": ("csv", "jsonl")}


def run(arguments: Sequence[str]) -> int:
    """Run the verb."""
    rest, repeated = _texts(arguments)
    (path,), flags = split_plain(rest, "predict", ["RUN"], valued=(*VALUED, *REPEATED), flags=("--raw",))
    problems = _wrong_flags(flags, repeated)
    if problems:
        raise UserError([*problems[:-1], Problem(problems[-1].what, problems[-1].hint, "runner predict --help")])
    checkpoint = flags.get("--checkpoint", "best")
    trained = trained_run(path, checkpoint)

    from runner.launching.rundir import RunDirectory
    from runner.predicting.accepts import accepted, check
    from runner.predicting.request import Request

    request = Request(
        run=str(trained),
        image=flags.get("--image"),
        texts=repeated["--text"],
        pairs=repeated["--pair"],
        file=flags.get("--file"),
        to=flags.get("--to"),
        tasks=_listed(flags.get("--tasks")),
        columns=_listed(flags.get("--columns")),
        keep=_listed(flags.get("--keep")),
        format=flags.get("--format", "csv"),
        raw="--raw" in flags,
        checkpoint=checkpoint,
        size=flags.get("--size", "model"),
        batch_size=int(flags["--batch-size"]) if "--batch-size" in flags else None,
        device=flags.get("--device", "auto"),
        data_root=flags.get("--data-root"),
    )
    # Said before a model is built; the worker asks again, of what is there by then.
    check(accepted(RunDirectory.open(trained).config(), trained, request), trained, request)
    command = [sys.executable, "-m", "runner.predicting.worker"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, env=dict(os.environ))
    try:
        process.communicate(str(request))
    except KeyboardInterrupt:  # it was interrupted too, and takes away what it had begun
        process.wait()
        raise
    return process.returncode if process.returncode >= 0 else EXIT_FAILED


def _texts(arguments: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """The other arguments, and the values of flags that may be given several times; a text may begin with a dash.

    Raises:
        UserError: one of them lacks its value.
    """
    rest, words = [], list(arguments)
    found: dict[str, list[str]] = {flag: [] for flag in REPEATED}
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if name not in REPEATED:
            rest.append(word)
            if word in VALUED and words:
                rest.append(words.pop(0))
        elif equals or words:
            found[name].append(value if equals else words.pop(0))
        else:
            raise UserError(f"{name} needs a value", f'{name} "a sentence"', "runner predict --help")
    return rest, found


def _listed(value: str | None) -> list[str]:
    return [part.strip() for part in (value or "").split(",") if part.strip()]


def _wrong_flags(flags: Mapping[str, str], repeated: Mapping[str, list[str]]) -> list[Problem]:
    """What can be said without the run."""
    texts, pairs = repeated["--text"], repeated["--pair"]
    problems = []
    given = [flag for flag in ("--image", "--text", "--file") if flag in flags or repeated.get(flag)]
    if len(given) > 1:
        problems.append(Problem(f"{' and '.join(given)} exclude one another", "one kind of input at a time"))
    if any(not text.strip() for text in (*texts, *pairs)):
        problems.append(Problem("--text: a text is empty", '--text "a sentence"'))
    if pairs and len(pairs) != len(texts):
        what = f"--pair is given {len(pairs)} times, and --text {len(texts)} times"
        problems.append(Problem(what, 'one of each: --text "first" --pair "second"'))
    for flag, choices in CHOICES.items():
        if flag in flags and flags[flag] not in choices:
            problems.append(Problem(f"{flag} is '{flags[flag]}'", suggest(flags[flag], choices) or ", ".join(choices)))
    size = flags.get("--batch-size", "1")
    if not size.isdigit() or not int(size):
        problems.append(Problem(f"--batch-size is '{size}'", "a number of inputs, such as 32"))
    to = Path(flags.get("--to", ".")).expanduser()
    if to.exists() and not to.is_dir():
        problems.append(Problem(f"--to: '{to}' is a file", "give a folder"))
    if "--image" in flags:
        problems += _nothing_to_read(Path(flags["--image"]).expanduser())
    if "--file" in flags:
        problems += _no_file(Path(flags["--file"]).expanduser())
    return problems


def _nothing_to_read(place: Path) -> list[Problem]:
    from runner.mixtures.sources import IMAGES
    from runner.predicting.images import pictures

    if not place.exists():
        return [Problem(f"--image: there is no '{place}'", "give a picture, or a folder of pictures")]
    if not pictures(place):
        return [Problem(f"--image: there is no picture in '{place}'", f"pictures end in {', '.join(IMAGES)}")]
    return []


def _no_file(place: Path) -> list[Problem]:
    if place.is_dir():
        return [Problem(f"--file: '{place}' is a folder", "give a file; folders of pictures go with --image")]
    if not place.exists():
        return [Problem(f"--file: there is no '{place}'", "give a file with a row per input")]
    return []
