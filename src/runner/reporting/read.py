"""Reading run directories and sweeps: whatever their state, wherever they were copied to, without torch.

A directory that is damaged or half written becomes a `Run` with a cause, never an exception.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from runner.errors import Problem, UserError
from runner.launching.rundir import alive

State = Literal["completed", "running", "waiting", "stopped", "failed", "killed", "damaged"]
Values = dict[str, dict[str, float]]
"""Task → metric → value; NaN where the run could not tell."""

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml reads a configuration in a millisecond
_NAME = re.compile(r"(\d{8}T\d{6}Z|\d+)-[0-9a-f]{8}(-[0-9a-f]+)?")


@dataclass
class Run:
    """One run directory, or a job of a sweep that has none yet.

    Attributes:
        path: the directory.
        state: see `State`; "killed" is a run whose process is gone, "waiting" one that has not begun.
        cause: one line on why there is no result; empty for completed and running runs.
        info, config, result: run.json, config.yaml, result.json; empty where there is none.
        step, goal: of a run that is not completed; 0 where unknown.
        given: whether the user's paths hold it; else another run named it as its baseline or expert.
    """

    path: Path
    state: State = "damaged"
    cause: str = ""
    info: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    step: int = 0
    goal: int = 0
    given: bool = True

    @property
    def verb(self) -> str:
        """train, eval or merge."""
        return str(self.info.get("verb") or "train")

    @property
    def seed(self) -> int | None:
        """The seed; None where the configuration has none."""
        seed = self.config.get("seed", self.info.get("seed"))
        return seed if isinstance(seed, int) else None

    @property
    def signature(self) -> str:
        """Names the weights this run made or looked at."""
        return str(self.result.get("signature") or self.info.get("signature") or self.path.name)

    @property
    def argv(self) -> list[str]:
        """The arguments after `runner`."""
        return [str(word) for word in self.info.get("argv") or []]

    @property
    def needs(self) -> list[Mapping[str, Any]]:
        """What run.json says about the baselines and experts it used."""
        needs = self.info.get("needs")
        return [need for need in needs if isinstance(need, Mapping)] if isinstance(needs, list) else []

    def values(self, split: str | None = None) -> Values:
        """The final metrics of a completed run, of its own split or of another one that it holds."""
        if split is None or split == self.result.get("split"):
            return as_values(self.result.get("tasks"))
        return as_values(self.result.get(split))


@dataclass(frozen=True)
class Sweep:
    """A sweep directory: what `sweep.json` says.

    Attributes:
        path: the directory. info: the file. search: tune.json, where `runner tune` made the sweep.
    """

    path: Path
    info: dict[str, Any]
    search: dict[str, Any] = field(default_factory=dict)

    @property
    def axes(self) -> list[str]:
        """The swept keys, in the order of the command."""
        axes = self.info.get("axes")
        return [key.lstrip("+") for key in axes] if isinstance(axes, Mapping) else []

    @property
    def kind(self) -> str:
        """What to call it."""
        return "search" if self.info.get("verb") == "tune" else "sweep"

    @property
    def command(self) -> str:
        """The command that made the sweep and, given again, goes on with it; empty where it was not recorded."""
        argv = self.info.get("argv")
        return f"runner {shlex.join(map(str, argv))}" if isinstance(argv, list) and argv else ""

    @property
    def importance(self) -> dict[str, float]:
        """Parameter → share of the variation of a search that it explains, the largest first."""
        shares = self.search.get("importance")
        known = shares.items() if isinstance(shares, Mapping) else ()
        found = {str(key): float(share) for key, share in known if isinstance(share, int | float)}
        return dict(sorted(found.items(), key=lambda item: -item[1]))


@dataclass
class Found:
    """What lies under the paths: runs in the order of their directories, and sweeps."""

    runs: list[Run]
    sweeps: list[Sweep]


def as_values(content: Any) -> Values:
    """Task → metric → float of a JSON mapping; null is NaN, what is not a number is left out."""
    found: Values = {}
    for task, metrics in content.items() if isinstance(content, Mapping) else ():
        if isinstance(metrics, Mapping):
            found[str(task)] = {
                str(name): math.nan if value is None else float(value)
                for name, value in metrics.items()
                if value is None or (isinstance(value, int | float) and not isinstance(value, bool))
            }
    return found


def load(paths: Sequence[Path]) -> Found:
    """Every run and every sweep below the paths, each once.

    Raises:
        UserError: paths that do not exist, or that hold no run; all of them at once.
    """
    found, problems = Found([], []), []
    seen: set[Path] = set()
    for path in paths:
        if not path.exists():
            problems.append(Problem(f"there is no folder '{path}'", "", "runner status outputs"))
            continue
        before = len(found.runs)
        for folder in _folders(path):
            if (folder / "sweep.json").is_file():
                _add_sweep(folder, found, seen)
            if folder.resolve() not in seen and _is_run(folder):
                seen.add(folder.resolve())
                found.runs.append(read_run(folder))
        inside = path.resolve()
        if len(found.runs) == before and not any(other.is_relative_to(inside) for other in seen):
            hint = "give a run, a sweep, or any folder above them"
            problems.append(Problem(f"there is no run in '{path}'", hint, "runner status outputs"))
    if problems:
        raise UserError(problems)
    return found


def _folders(top: Path) -> Iterable[Path]:
    """All folders that may be runs or sweeps, by name; a run's own folders are not looked into."""
    for base, folders, files in os.walk(top):
        if "run.json" in files:
            folders.clear()
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield Path(base)


def _is_run(folder: Path) -> bool:
    """A folder with run.json, or what is left of one: numbers, or a configuration in a folder named like a run's."""
    if any((folder / name).is_file() for name in ("run.json", "metrics.jsonl", "result.json")):
        return True
    return bool(_NAME.fullmatch(folder.name)) and (folder / "config.yaml").is_file()


def _add_sweep(folder: Path, found: Found, seen: set[Path]) -> None:
    """Take in a sweep; its jobs that have no directory yet are runs that wait."""
    info, trouble = _json(folder / "sweep.json")
    if trouble:
        found.runs.append(Run(folder / "sweep.json", cause=trouble))
        return
    found.sweeps.append(Sweep(folder, info, _json(folder / "tune.json")[0]))
    jobs = info.get("jobs")
    for job in jobs if isinstance(jobs, list) else []:
        if not isinstance(job, Mapping) or not isinstance(job.get("directory"), str):
            continue
        place = folder / job["directory"]
        if not _is_run(place) and place.resolve() not in seen:
            seen.add(place.resolve())
            verb = info["verb"] if info.get("verb") in ("eval", "merge") else "train"  # a search runs `train` too
            argv = [str(word) for word in (verb, *(job.get("overrides") or []))]
            # What the sweep has frozen for it says to which setting it belongs.
            config, trouble = _json(folder / "configs" / f"{place.name}.json")
            waiting = Run(place, "waiting", "has not begun", {"argv": argv, "verb": verb})
            waiting.config = {} if trouble else config
            found.runs.append(waiting)


def read_run(path: Path) -> Run:
    """One run directory; what is wrong with it is its cause."""
    run = Run(path)
    run.info, trouble = _json(path / "run.json")
    if trouble:
        run.cause = trouble
        return run
    try:
        config = yaml.load((path / "config.yaml").read_text(encoding="utf-8"), _LOADER)
        if not isinstance(config, dict):
            raise ValueError("not a mapping")
        run.config = config
    except (OSError, ValueError, yaml.YAMLError) as error:
        run.cause = f"config.yaml cannot be read: {_one_line(error)}"
        return run
    run.state, run.cause = _state(run)
    if run.state == "completed":
        run.result, trouble = _json(path / "result.json")
        if not trouble and not as_values(run.result.get("tasks")):
            trouble = "result.json has no metrics"
        if trouble:
            run.state, run.cause, run.result = "damaged", f"completed, but {trouble}", {}
    else:
        trainer = run.config.get("trainer")
        goal = trainer.get("max_steps") if isinstance(trainer, Mapping) else None
        run.step, run.goal = _last_step(path / "metrics.jsonl"), goal if isinstance(goal, int) else 0
    return run


def _state(run: Run) -> tuple[State, str]:
    status = run.info.get("status")
    attempts = run.info.get("attempts")
    newest = attempts[-1] if isinstance(attempts, list) and attempts and isinstance(attempts[-1], Mapping) else {}
    message = _one_line(newest.get("message") or "")
    if status == "COMPLETED":
        return "completed", ""
    if status == "RUNNING":
        return ("running", "") if alive(newest) else ("killed", "its process is gone")
    if status == "CLAIMED":
        return "waiting", "has not begun"
    if status == "STOPPED":
        return "stopped", message or "stopped by hand"
    if status == "FAILED":
        return "failed", message or _last_line(run.path / "train.log") or "no cause was recorded"
    return "damaged", f"run.json has the unknown status '{status}'"


def _json(path: Path) -> tuple[dict[str, Any], str]:
    """A JSON mapping, and what is wrong with it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}, f"{path.name} is missing"
    except (OSError, ValueError) as error:
        return {}, f"{path.name} cannot be read: {_one_line(error)}"
    return (content, "") if isinstance(content, dict) else ({}, f"{path.name} is not a mapping")


def _one_line(text: object) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= 300 else f"{line[:299]}…"


def _tail(path: Path, size: int = 65536) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - size))
            return file.read()
    except OSError:
        return b""


def _last_line(path: Path) -> str:
    lines = [line for line in _tail(path).decode("utf-8", "replace").splitlines() if line.strip()]
    return _one_line(lines[-1]) if lines else ""


def _last_step(path: Path) -> int:
    """The newest step in the end of a metrics.jsonl."""
    for line in reversed(_tail(path).splitlines()):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):
            continue  # torn by a kill, or cut by the window
    return 0


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl; lines that are torn or foreign are left out."""
    try:
        content = (path / "metrics.jsonl").read_bytes()
    except OSError:
        return []
    lines = content.splitlines()
    try:
        rows = json.loads(b"[" + b",".join(line for line in lines if line.strip()) + b"]")
    except ValueError:
        rows = []
        for line in lines:
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue  # the others are whole: a kill tears one line
    return [row for row in rows if isinstance(row, dict) and "step" in row and "metric" in row]
