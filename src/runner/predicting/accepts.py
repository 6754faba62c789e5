"""What a run takes, and everything that is wrong with what it was given, before torch is imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.config import plugins
from runner.config.build import build
from runner.config.source import constant
from runner.errors import Problem, UserError, suggest
from runner.mixtures.base import Mixture
from runner.mixtures.qm9 import QM9
from runner.mixtures.tables import Table
from runner.mixtures.text import Texts
from runner.predicting import images, molecules, tables
from runner.predicting.request import Request

FLAGS = {"image": ("--image", "--file"), "text": ("--text", "--file"), "table": ("--file",), "graph": ("--file",)}
"""What a mixture reads → how it is given."""

_GIVE = {
    "image": "--image FILE|DIR, or --file FILE with a column of pictures",
    "text": '--text "a sentence", or --file FILE with a column of texts',
    "table": "--file FILE with the columns that the model reads",
    "graph": "--file FILE.sdf or FILE.xyz",
}


_NOUN = {"image": "pictures", "text": "texts", "table": "rows of a table", "graph": "molecules"}
_READS: dict[str, type[Mixture]] = {"text": Texts, "table": Table, "graph": QM9}
"""What a mixture must be for its inputs to be read; one of images says it itself, see `Mixture.picture`."""


@dataclass(frozen=True)
class Accepted:
    """What a run takes.

    Attributes:
        mixture: as configured; nothing of it is opened.
        dense: the tasks that colour pictures. others: those that answer in a table. Both among those asked for.
    """

    mixture: Mixture
    dense: list[str]
    others: list[str]


def accepted(config: Mapping[str, Any], run: Path | str, request: Request | None = None) -> Accepted:
    """What a run takes.

    Args:
        config: the run's. run: its directory, for messages. request: names tasks; None for all.

    Raises:
        UserError: a task that there is not, or a run for which there is nothing to predict.
    """
    if problems := plugins.register(config.get("plugins") or []):
        raise UserError(problems)
    tasks = config["mixture"]["tasks"]
    wanted = list(dict.fromkeys(request.tasks)) if request is not None and request.tasks else list(tasks)
    if unknown := [name for name in wanted if name not in tasks]:
        raise UserError([Problem(f"--tasks: '{run}' has no task '{name}'", suggest(name, tasks)) for name in unknown])
    targets = {name: str(tasks[name].get("_target_", "")) for name in wanted}
    if all(constant(target, "needs_labels") is False for target in targets.values()):
        raise UserError(
            f"the tasks of '{run}' ({', '.join(wanted)}) are functions of the weights alone",
            "they take no input, so there is nothing to predict",
        )
    root = (request.data_root if request is not None else None) or config["data_root"]
    mixture: Mixture = build(config["mixture"], root, where="mixture")
    dense = [name for name, target in targets.items() if constant(target, "kind") == "dense"]
    kind, name = mixture.input_kind, type(mixture).__name__
    reads = _READS.get(kind)
    if reads is not None and not isinstance(mixture, reads):
        raise UserError(
            f"'{run}' was trained on the mixture {name}, which does not say how {_NOUN[kind]} of one's own are read",
            f"a mixture that derives from {reads.__module__}.{reads.__name__} does",
        )
    return Accepted(mixture, dense, [name for name in wanted if name not in dense])


def check(found: Accepted, run: Path | str, request: Request) -> None:
    """Whether a request fits a run.

    Raises:
        UserError: everything that does not, as far as can be seen from flags, files' headers and the configuration.
    """
    kind = found.mixture.input_kind
    given = {"--image": request.image is not None, "--text": bool(request.texts), "--file": request.file is not None}
    problems = []
    for flag in (flag for flag, there in given.items() if there and flag not in FLAGS[kind]):
        problems.append(Problem(f"{flag}: '{run}' reads {_NOUN[kind]}", f"give {_GIVE[kind]}"))
    if not any(given.values()):
        problems.append(Problem("runner predict: there is no input", f"'{run}' takes {_GIVE[kind]}"))
    elif found.dense and request.image is None and not problems:
        what = f"--file: the dense tasks of '{run}' ({', '.join(found.dense)}) colour pictures"
        problems.append(Problem(what, "give --image FILE|DIR"))
    if request.to is None and not problems:
        if found.dense:
            problems.append(Problem("runner predict: --to is missing", "--to DIR: dense tasks write pictures there"))
        elif request.file is not None or (request.image and Path(request.image).expanduser().is_dir()):
            problems.append(Problem("runner predict: --to is missing", "--to DIR: they go to DIR/predictions.csv"))
    for flag, value, kinds in (
        ("--columns", request.columns, ("text", "image")),
        ("--keep", request.keep, ("text", "image", "table")),
    ):
        if value and request.file is None:
            problems.append(Problem(f"{flag} names columns of a file", "it goes with --file"))
        elif value and kind not in kinds:
            problems.append(Problem(f"{flag} means nothing to '{run}'", f"it reads {_NOUN[kind]}; leave it out"))
    if request.size != "model" and not found.dense:
        problems.append(Problem(f"--size means nothing to '{run}'", "it has no dense task; leave it out"))
    if not problems and request.file is not None:
        try:
            _check_file(found, request)
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)


def _check_file(found: Accepted, request: Request) -> None:
    if found.mixture.input_kind == "graph":
        molecules.check(found.mixture, found.others, request)
        return
    if isinstance(found.mixture, Table):
        tables.check(found.mixture, found.others, request)
    elif isinstance(found.mixture, Texts):
        from runner.predicting.texts import where

        where(found.mixture, found.others, request)
    else:
        images.column_of(found.mixture, request)
