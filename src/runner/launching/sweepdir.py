"""A sweep owns one directory: `sweep.json`, the frozen configurations, and a run directory for every job.

    outputs/sweeps/<name>-<hash>/
      sweep.json                     what the sweep is: axes, jobs, needed runs
      configs/<NNN>-<signature>.json what each job was checked and frozen with; nothing recomposes
      jobs/<NNN>-<signature>/        an ordinary run directory; it appears when the job starts

The same command, also with more values for an axis, comes back to the same directory. How a job is doing stands in its
run directory and nowhere else.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runner.config.signature import signature
from runner.errors import UserError
from runner.files import read_json, write_json
from runner.launching.rundir import now

SCHEMA = 1


@dataclass(frozen=True)
class Entry:
    """A job in `sweep.json`.

    Attributes:
        number: its place in the sweep, from 0; also its index in a SLURM array.
        overrides: the command line that composes it.
        signature: of its configuration.
        directory: relative to the sweep's.
    """

    number: int
    overrides: list[str]
    signature: str
    directory: str

    @property
    def stem(self) -> str:
        """`<NNN>-<signature>`."""
        return Path(self.directory).name


def identifier(name: str, identity: Sequence[str]) -> str:
    """`<name>-<hash>` of what makes a sweep this one."""
    digest = hashlib.sha256(json.dumps(list(identity)).encode()).hexdigest()[:8]
    return f"{name.replace('/', '-')}-{digest}"


def is_sweep(path: Path) -> bool:
    """Whether a folder is the directory of a sweep."""
    return (path / "sweep.json").is_file()


class SweepDirectory:
    """One sweep's directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def open(cls, path: Path) -> SweepDirectory:
        """An existing sweep.

        Raises:
            UserError: `path` is none, or its files are damaged.
        """
        sweep = cls(path.absolute())
        if not is_sweep(path):
            raise UserError(
                f"'{path}' is not the directory of a sweep: it has no sweep.json", "", "runner status outputs"
            )
        try:
            sweep.entries()
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"'{path / 'sweep.json'}' cannot be read: {error}", "the sweep's own file is damaged"
            ) from error
        return sweep

    @property
    def id(self) -> str:
        """Its name everywhere: W&B's group, the Slurm job's name."""
        return str(self.info()["id"]) if is_sweep(self.path) else self.path.name

    def info(self) -> dict[str, Any]:
        """`sweep.json`."""
        return read_json(self.path / "sweep.json")

    def entries(self) -> list[Entry]:
        """Its jobs, by number."""
        return [Entry(**job) for job in self.info()["jobs"]]

    def config(self, entry: Entry) -> dict[str, Any]:
        """What a job was frozen with."""
        return read_json(self.path / "configs" / f"{entry.stem}.json")

    def directory(self, entry: Entry) -> Path:
        """Where a job runs."""
        return self.path / entry.directory

    def state(self, entry: Entry) -> str:
        """The status in the job's run.json; "WAITING" before it has one."""
        return state_of(self.directory(entry))

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Hold `sweep.json`: two commands that add jobs at the same time must not lose one another's."""
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / ".changing", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def enter(
        self,
        id: str,
        name: str,
        argv: Sequence[str],
        arguments: Sequence[str],
        axes: Mapping[str, Sequence[str]],
        fixed: Sequence[str],
        points: Sequence[tuple[list[str], Mapping[str, Any]]],
    ) -> list[Entry]:
        """Write the sweep, or add to it what is new; returns the entries of `points`, in their order.

        A point is the same job when its values of the axes and its signature are the same. One whose YAML has changed
        since gets a new job: the old one keeps its numbers.

        Args:
            id: of `identifier`. name: of its runs. argv: the command.
            arguments: what each job's own command has behind its overrides, such as `--config-dir DIR`.
            axes: key → values. fixed: overrides that all jobs share.
            points: (overrides, frozen configuration) of every job.

        Raises:
            UserError: the directory holds another sweep, or cannot be written.
        """
        try:
            with self.changing():
                return self._enter(id, name, argv, arguments, axes, fixed, points)
        except OSError as error:
            what = f"the sweep's directory cannot be written: {error}"
            raise UserError(what, "choose another place with output_dir=DIR or sweep_dir=DIR") from error

    def _enter(
        self,
        id: str,
        name: str,
        argv: Sequence[str],
        arguments: Sequence[str],
        axes: Mapping[str, Sequence[str]],
        fixed: Sequence[str],
        points: Sequence[tuple[list[str], Mapping[str, Any]]],
    ) -> list[Entry]:
        if is_sweep(self.path):
            info = SweepDirectory.open(self.path).info()
            if info["id"] != id:
                raise UserError(
                    f"'{self.path}' holds another sweep, {info['id']}",
                    "choose another sweep_dir, or leave it out",
                    f"runner status {self.path}",
                )
        else:
            info = {"schema": SCHEMA, "id": id, "name": name, "created": now(), "argv": list(argv), "verb": "train"}
            info |= {"arguments": list(arguments), "axes": {}, "fixed": [], "jobs": [], "needs": []}
        before = json.dumps(info)
        info |= {"argv": list(argv), "fixed": list(fixed)}
        for key, values in axes.items():
            info["axes"][key] = list(dict.fromkeys([*info["axes"].get(key, []), *values]))
        swept = tuple(f"{key.lstrip('+')}=" for key in info["axes"])
        known = {_key(job["overrides"], job["signature"], swept): Entry(**job) for job in info["jobs"]}
        entries = []
        number = max((job["number"] for job in info["jobs"]), default=-1) + 1
        (self.path / "configs").mkdir(exist_ok=True)
        for overrides, config in points:
            sig = signature(config)
            key = _key(overrides, sig, swept)
            entry = known.get(key)
            if entry is None:
                entry = Entry(number, overrides, sig, f"jobs/{number:03d}-{sig}")
                known[key] = entry
                info["jobs"].append(asdict(entry))
                number += 1
            self.freeze(entry.stem, config)
            entries.append(entry)
        if json.dumps(info) != before or not is_sweep(self.path):
            write_json(self.path / "sweep.json", info)
        return entries

    def freeze(self, stem: str, config: Mapping[str, Any]) -> None:
        """Keep a configuration; the file is written anew only where it differs, which is cheap to find out."""
        path = self.path / "configs" / f"{stem}.json"
        text = json.dumps(config, indent=1, ensure_ascii=False) + "\n"
        with contextlib.suppress(FileNotFoundError):
            if path.read_text(encoding="utf-8") == text:
                return
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)

    def add_needs(self, needs: Sequence[tuple[str, Sequence[str], str, Mapping[str, Any]]]) -> None:
        """List needed runs, each once: (role, tasks, signature, frozen configuration)."""
        if not needs:
            return
        with self.changing():
            info = self.info()
            known = {need["signature"] for need in info["needs"]}
            for role, tasks, sig, config in needs:
                self.freeze(f"needs/{sig}", config)
                if sig not in known:
                    info["needs"].append({"role": role, "tasks": list(tasks), "signature": sig})
                    known.add(sig)
            write_json(self.path / "sweep.json", info)

    @contextlib.contextmanager
    def attending(self) -> Iterator[None]:
        """Be known, while this lasts, as a front end that runs jobs of the sweep: `runner cancel` tells it to stop."""
        folder = self.path / ".fronts"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{socket.gethostname()}.{os.getpid()}"
        with open(path, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                path.unlink(missing_ok=True)

    def fronts(self) -> list[tuple[str, int]]:
        """(host, process id) of the front ends that run jobs of the sweep now."""
        found = []
        for path in sorted((self.path / ".fronts").glob("*.*")):
            with contextlib.suppress(FileNotFoundError), open(path) as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink(missing_ok=True)  # it was killed
                except BlockingIOError:
                    host, _, pid = path.name.rpartition(".")
                    found.append((host, int(pid)))
        return found

    def need_config(self, sig: str) -> dict[str, Any]:
        """What a needed run was frozen with."""
        return read_json(self.path / "configs" / "needs" / f"{sig}.json")


def _key(overrides: Sequence[str], sig: str, swept: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    """Two points are one job when they have the same values of the axes and the same signature.

    The signature alone would take two values of an axis that does not affect weights for one; and shared overrides
    such as `launch.jobs=2` may change from one command to the next.
    """
    lines = (line.lstrip("+") for line in overrides)
    return tuple(sorted(line for line in lines if line.startswith(swept))), sig


def state_of(run: Path) -> str:
    """The status of a run directory that need not be there yet."""
    try:
        return str(read_json(run / "run.json")["status"])
    except FileNotFoundError:
        return "WAITING"
    except (ValueError, KeyError, TypeError):
        return "DAMAGED"
