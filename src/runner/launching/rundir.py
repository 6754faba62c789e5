"""A run owns one directory; this module claims it and keeps `run.json`."""

from __future__ import annotations

import importlib.metadata
import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import yaml

from runner.config.signature import signature
from runner.errors import UserError
from runner.files import read_json, write_atomic, write_json

Status = Literal["CLAIMED", "RUNNING", "COMPLETED", "FAILED", "STOPPED"]
SCHEMA = 1
LOCK = ".lock"
"""Held in a run's directory by the worker in it."""
PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "hydra-core",
    "omegaconf",
    "datasets",
    "wandb",
    "safetensors",
    "numpy",
)


def now() -> str:
    """UTC, to the second, ISO 8601."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class RunDirectory:
    """One run's directory: `run.json` (what happened), `config.yaml` (what was asked for)."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def claim(cls, config: Mapping[str, Any], verb: str, argv: list[str], **more: Any) -> RunDirectory:
        """Create `outputs/<verb>/<name>/<UTC>-<signature>-<random>/`, or the pinned `run_dir`; freeze the config in it.

        Args:
            config: resolved and checked.
            verb: what the run does.
            argv: the command line that asked for it.
            more: further keys of `run.json`, such as the sweep it belongs to.

        Raises:
            UserError: the place cannot be written.
        """
        sig = signature(config)
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        try:
            if config.get("run_dir"):
                path = Path(config["run_dir"])
                path.mkdir(parents=True, exist_ok=True)
            else:
                parent = Path(config["output_dir"]) / verb / str(config["name"])
                parent.mkdir(parents=True, exist_ok=True)
                path = parent / f"{stamp}-{sig}-{secrets.token_hex(2)}"
                path.mkdir(exist_ok=False)
            run = cls(path)
            write_atomic(path / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))
            git, diff = git_state()
            if diff:
                write_atomic(path / "git.diff", diff)
            write_json(
                path / "run.json",
                {
                    "schema": SCHEMA,
                    "status": "CLAIMED",
                    "verb": verb,
                    "name": config["name"],
                    "argv": argv,
                    "signature": sig,
                    "seed": config.get("seed"),
                    "created": now(),
                    "git": git,
                    "python": sys.version.split()[0],
                    "packages": package_versions(),
                    "wandb_id": agent_run_id(more.get("role")) or f"{sig}-{secrets.token_hex(3)}",
                    **more,
                    "attempts": [],
                },
            )
        except OSError as error:
            raise UserError(
                f"the run directory cannot be created: {error}", "choose another place with output_dir=DIR"
            ) from error
        return run

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """An existing run.

        Raises:
            UserError: `path` is not a run directory.
        """
        for name in ("run.json", "config.yaml"):
            if not (path / name).is_file():
                raise UserError(f"'{path}' is not a run directory: it has no {name}", "", "runner status outputs")
        run = cls(path)
        try:
            run.info()
            run.config()
        except (ValueError, yaml.YAMLError) as error:
            raise UserError(f"'{path}' is damaged: {error}") from error
        return run

    def config(self) -> dict[str, Any]:
        """The frozen configuration."""
        return yaml.safe_load((self.path / "config.yaml").read_text(encoding="utf-8"))

    def info(self) -> dict[str, Any]:
        """`run.json`."""
        return read_json(self.path / "run.json")

    def result(self) -> dict[str, Any] | None:
        """`result.json`, if the run has one."""
        path = self.path / "result.json"
        return read_json(path) if path.is_file() else None

    def update(self, **values: Any) -> None:
        """Change top-level keys of `run.json`."""
        write_json(self.path / "run.json", self.info() | values)

    def begin_attempt(self, step: int) -> int:
        """Record that a worker starts (or continues at `step`); returns the attempt's number, from 1."""
        attempts = self.info()["attempts"]
        attempts.append(
            {"started": now(), "status": "RUNNING", "host": socket.gethostname(), "pid": os.getpid(), "from_step": step}
        )
        # Why it could not start before is no longer true.
        cleared = {"message": ""} if self.info().get("message") else {}
        self.update(status="RUNNING", attempts=attempts, **cleared)
        return len(attempts)

    def end_attempt(self, status: Status, step: int | None = None, message: str = "") -> None:
        """Record how the newest attempt ended."""
        attempts = self.info()["attempts"]
        if attempts:
            attempts[-1] |= {"ended": now(), "status": status} | ({} if step is None else {"step": step})
            attempts[-1] |= {"message": message} if message else {}
        early = {"message": message} if message and not attempts else {}  # it ended before it was an attempt
        self.update(status=status, attempts=attempts, **early)


def alive(attempt: Mapping[str, Any]) -> bool:
    """Whether the process of an attempt in `run.json` lives; one on another machine is believed."""
    pid = attempt.get("pid")
    if attempt.get("host") not in (None, socket.gethostname()) or not isinstance(pid, int):
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def agent_run_id(role: str | None) -> str | None:
    """The id that an agent of a W&B sweep has given the run that it starts; a run that this one needs is not meant."""
    return os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") and role is None else None


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide a result; one that is not installed is left out."""
    found = {}
    for name in ("runner", *PACKAGES):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_state() -> tuple[dict[str, Any] | None, str]:
    """Commit and dirty flag of the checkout that this code is in, and its uncommitted diff; (None, "") outside one."""

    def git(*arguments: str) -> str:
        here = Path(__file__).parent
        command = ["git", "-C", str(here), *arguments]
        found = subprocess.run(command, capture_output=True, check=True).stdout
        return found.decode("utf-8", errors="replace")  # a diff holds files in any encoding

    try:
        # An installed package may lie inside somebody else's checkout: only a tracked file of ours counts.
        git("ls-files", "--error-unmatch", Path(__file__).name)
        diff = git("diff", "HEAD")
        return {"sha": git("rev-parse", "HEAD").strip(), "dirty": bool(diff)}, diff
    except (OSError, subprocess.CalledProcessError):
        return None, ""
