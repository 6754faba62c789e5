"""Runs that another run needs: found by their signature, trained where they are missing, by one process at a time.

The single-task baselines that Δm is measured against are such runs, and so are the experts of a merge. A signature
does not depend on who needs the run, so every job of a sweep finds what the first one trained.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from runner.config.derive import PLAIN, expert_groups, on_tasks
from runner.config.signature import signature
from runner.errors import EXIT_DONE, EXIT_STOPPED
from runner.files import read_json
from runner.launching.locks import held
from runner.launching.rundir import LOCK

APART = 1_000_003
"""Between the seeds of experts with `merging.apart`: none is another run's."""

Role = Literal["baseline", "expert", "base"]


@dataclass(frozen=True)
class Need:
    """A run that must be COMPLETED before another one can be.

    Attributes:
        role: what it is needed for. A missing baseline only costs Δm; without an expert there is nothing to merge.
        tasks: what it is trained on.
        config: its frozen configuration.
        signature: of that configuration.
    """

    role: Role
    tasks: tuple[str, ...]
    config: dict[str, Any]
    signature: str

    @classmethod
    def of(cls, role: Role, config: dict[str, Any]) -> Need:
        """What `config` would train, as a need."""
        return cls(role, tuple(config["mixture"]["tasks"]), config, signature(config))

    def entry(self, path: Path | None) -> dict[str, Any]:
        """Its line in `needs` of a run.json; `path` is the run that was found, if any."""
        where = str(path.absolute()) if path is not None else None
        return {"role": self.role, "tasks": list(self.tasks), "path": where, "signature": self.signature}

    def argv(self, argv: Sequence[str]) -> list[str]:
        """The command that would train it alone, made of the command of the run that needs it."""
        if self.role == "base" and not self.config["merge"].get("_target_"):
            return ["train", f"+experiment={self.config['name']}", f"seed={self.config['seed']}"]
        changed = (*PLAIN, "baseline", "tasks", "name", "run_dir", "seed")
        kept = [a for a in argv if a.lstrip("+~").partition("=")[0].partition(".")[0] not in changed]
        plain = [f"{group}={option}" for group, option in PLAIN.items() if any(group in a for a in argv)]
        return [*kept, *plain, f"tasks=[{','.join(self.tasks)}]", f"seed={self.config['seed']}"]

    def __str__(self) -> str:
        return f"{self.role} of {', '.join(self.tasks)}"


def needs(config: Mapping[str, Any]) -> list[Need]:
    """What a frozen configuration of `runner train` needs, in the order in which it should be trained."""
    return [*base(config), *experts(config), *baselines(config)]


def base(config: Mapping[str, Any]) -> list[Need]:
    """The run of the experiment that `init` starts from."""
    init = config.get("init")
    return [Need.of("base", init["config"])] if isinstance(init, Mapping) else []


def experts(config: Mapping[str, Any]) -> list[Need]:
    """One expert per task or named subset, tuned from the same start; none where nothing is merged."""
    if not (config.get("merge") or {}).get("_target_"):
        return []
    found = []
    for number, (expert, tasks) in enumerate(expert_groups(config).items(), 1):
        derived = on_tasks(config, tasks, f"{config['name']}/expert/{expert}")
        if config["merging"].get("apart"):
            derived["seed"] += number * APART
        found.append(Need.of("expert", derived))
    return found


def baselines(config: Mapping[str, Any]) -> list[Need]:
    """The single-task run of each task, if `baseline: auto` asks for them; none for a run of one task."""
    tasks = list(config["mixture"]["tasks"])
    if config.get("baseline") != "auto" or len(tasks) < 2:
        return []
    return [Need.of("baseline", on_tasks(config, [task], f"{config['name']}/single/{task}")) for task in tasks]


# ---- finding -------------------------------------------------------------------------------------------------------


def find(need: Need) -> Path | None:
    """The newest COMPLETED run with the need's signature and a result on its final split; None where there is none."""
    split = need.config["trainer"]["final_split"] or "validation"
    for path in candidates(need):
        info = _json(path / "run.json")
        result = _json(path / "result.json")
        # A folder's name is a hint only: it may have been renamed.
        whole = info.get("status") == "COMPLETED" and info.get("signature") == need.signature
        if whole and result.get("split") == split:
            return path
    return None


def unfinished(need: Need) -> Path | None:
    """The newest run with the need's signature that was started and can be continued."""
    for path in candidates(need):
        info = _json(path / "run.json")
        if info.get("signature") == need.signature and info.get("status") in ("CLAIMED", "RUNNING", "STOPPED"):
            return path
    return None


def candidates(need: Need) -> list[Path]:
    """Run directories whose name carries the need's signature, newest first."""
    output = Path(need.config["output_dir"])
    found = [*_runs_below(output / "train", need.signature)]
    for sweep in _folders(output / "sweeps"):
        found += [p for p in _folders(sweep / "jobs") if p.name.endswith(f"-{need.signature}")]
    return sorted(found, key=_age)


def _runs_below(folder: Path, wanted: str) -> Iterator[Path]:
    """Folders named `<UTC>-<signature>-<random>` at any depth, without looking into runs."""
    for path in _folders(folder):
        if (path / "run.json").is_file():
            if f"-{wanted}-" in path.name:
                yield path
        else:
            yield from _runs_below(path, wanted)


def _folders(path: Path) -> list[Path]:
    try:
        with os.scandir(path) as entries:
            return [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _age(path: Path) -> float:
    with contextlib.suppress(OSError):
        return -(path / "run.json").stat().st_mtime
    return 0.0


def _json(path: Path) -> dict[str, Any]:
    """A JSON file's mapping; what is missing or damaged is as good as absent here."""
    try:
        value = read_json(path)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


# ---- training what is missing --------------------------------------------------------------------------------------


def ensure(
    wanted: Sequence[Need],
    train: Callable[[Need, Path | None], int],
    say: Callable[[str], None],
) -> tuple[dict[str, Path], int]:
    """Find every needed run or train it; two processes that need the same one do not train it twice.

    Args:
        wanted: what is needed.
        train: trains a need in a new directory, or continues it in the given one; returns the exit code.
        say: takes a line for the person who waits.

    Returns:
        signature → run directory of all that are COMPLETED; and 0, or the first exit code that was not 0.
        It ends early when a run was stopped, or one other than a baseline failed.
    """
    paths: dict[str, Path] = {}
    bad = EXIT_DONE
    for number, need in enumerate(wanted, 1):
        path = find(need)
        if path is None:
            with _claim(need, say):
                path = _elsewhere(need, say)
                if path is None:
                    say(f"{need} ({number} of {len(wanted)}):")
                    code = train(need, unfinished(need))
                    path = find(need)
                    if code != EXIT_DONE or path is None:
                        bad = bad or code
                        if code == EXIT_STOPPED or need.role != "baseline":
                            return paths, bad
                        continue
        paths[need.signature] = path
    return paths, bad


def _elsewhere(need: Need, say: Callable[[str], None]) -> Path | None:
    """What others have trained meanwhile; waits for one who does so now, though not as a need."""
    told = False
    while (path := find(need)) is None and (left := unfinished(need)) is not None and held(left / LOCK):
        if not told:
            say(f"waiting for {left}, where another process trains the {need}")
        told = True
        time.sleep(1.0)
    return path


def lock_path(need: Need) -> Path:
    """The file that is locked by whoever trains the need."""
    return Path(need.config["output_dir"]) / ".needs" / f"{need.signature}.lock"


@contextlib.contextmanager
def _claim(need: Need, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the need for this process; the lock goes with the process, however it ends."""
    path = lock_path(need)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that trains the {need}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
