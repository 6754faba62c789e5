"""inputs.json in a run's directory: what its model reads, so that it can be used where its training data is not.

{"inputs": …}     `InputSpec`
{"learned": …}    what the mixture took from the training data (a vocabulary, means and codes of columns)
{"classes": …}    task → names of its classes, where the data has names
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from runner.errors import UserError
from runner.files import read_json, write_json
from runner.mixtures.base import Mixture
from runner.specs import InputSpec

FILE = "inputs.json"


def keep_inputs(run: Path, mixture: Mixture, inputs: InputSpec) -> None:
    """Write it; only where a checkpoint of the run cannot have been made with other inputs."""
    kept = {"schema": 1, "inputs": asdict(inputs), "learned": mixture.keep(), "classes": mixture.class_names()}
    write_json(run / FILE, kept)


def kept_inputs(run: Path) -> dict[str, Any] | None:
    """Read it; None for a run of before there was such a file.

    Raises:
        UserError: it is damaged.
    """
    path = run / FILE
    if not path.is_file():
        return None
    try:
        kept = read_json(path)
        return {"inputs": dict(kept["inputs"]), "learned": dict(kept["learned"]), "classes": dict(kept["classes"])}
    except (ValueError, KeyError, TypeError) as error:
        hint = "take it away: what it says then comes from the training data"
        raise UserError(f"{path} is damaged: {error}", hint) from error


def input_spec(kept: dict[str, Any]) -> InputSpec:
    """What the mixture fed to the backbone."""
    return InputSpec(**{key: tuple(v) if isinstance(v, list) else v for key, v in kept["inputs"].items()})
