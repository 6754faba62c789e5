"""The front end: claims a run directory and starts one worker per run. Never imports torch."""

from __future__ import annotations

import math
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from runner.config.signature import signature
from runner.errors import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, UserError
from runner.files import write_atomic
from runner.launching import needs
from runner.launching.pool import refuse_changes
from runner.launching.ranks import Ranks, environment, environments, settle, worker_command
from runner.launching.rundir import RunDirectory
from runner.launching.signals import quiet_signals


def train(config: Mapping[str, Any], argv: list[str]) -> int:
    """Run a frozen configuration in a directory of its own, or go on in the pinned `run_dir`; returns the exit code.

    Raises:
        UserError: the pinned directory holds a run with another weights-affecting configuration.
    """
    pinned = Path(config["run_dir"]) if config.get("run_dir") else None
    if pinned is not None and (pinned / "run.json").exists():
        run = RunDirectory.open(pinned)
        refuse_changes(run.config(), config, pinned)
        # What does not affect weights (processes, tracking, paths) may change between attempts.
        write_atomic(pinned / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))
        return resume(pinned)
    return _train(RunDirectory.claim(config, "train", argv))


def resume(path: Path) -> int:
    """Continue a run from its newest whole checkpoint; a completed one answers with its result."""
    run = RunDirectory.open(path)
    info, config = run.info(), run.config()
    if info["verb"] != "train":
        raise UserError(f"'{path}' is a run of `{info['verb']}`: only `train` can be resumed")
    if signature(config) != info["signature"]:
        raise UserError(
            f"{path / 'config.yaml'} was changed since the run started: its signature is {signature(config)}, "
            f"the run's is {info['signature']}",
            "a run keeps its configuration: undo the change, or start a new run with it",
            f"runner status {path}",
        )
    if info["status"] == "COMPLETED":
        print(f"{path} is COMPLETED: nothing is left to do")
        _show_result(run.result())
        return EXIT_DONE
    return _train(run)


def _train(run: RunDirectory) -> int:
    """Provide what the run needs, then do its work."""
    wanted = needs.needs(run.config())
    if wanted:
        code = _provide(run, wanted)
        if code != EXIT_DONE:
            return code
    return _work(run)


def _provide(run: RunDirectory, wanted: Sequence[needs.Need]) -> int:
    """Find or train the needed runs and name them in run.json; returns 0 if the run can start."""
    argv = run.info()["argv"]

    def train_need(need: needs.Need, path: Path | None) -> int:
        if path is not None:
            return resume(path)
        return _train(RunDirectory.claim(need.config, "train", need.argv(argv), role=need.role))

    here = sum(needs.find(need) is not None for need in wanted)
    words = f"{len(wanted)} runs are needed ({', '.join(map(str, wanted))}): "
    print(words + ("all are there" if here == len(wanted) else f"{len(wanted) - here} to train"), flush=True)
    found, code = needs.ensure(wanted, train_need, lambda text: print(f"\n{text}", flush=True))
    run.update(needs=[need.entry(found.get(need.signature)) for need in wanted])
    lost = [need for need in wanted if need.signature not in found]
    if not lost:
        if here < len(wanted):
            print(f"\n{run.info()['name']}, for which they were needed:", flush=True)
        return EXIT_DONE
    if code == EXIT_STOPPED:
        run.update(status="STOPPED")
        print(f"stopped before {run.path} started\n  see: runner resume {shlex.quote(str(run.path))}", file=sys.stderr)
        return EXIT_STOPPED
    words = ", ".join(map(str, lost))
    if all(need.role == "baseline" for need in lost):
        print(f"warning: there is no {words}: the result will have no Δm", file=sys.stderr)
        return EXIT_DONE
    run.update(status="FAILED", message=f"there is no {words}")
    print(
        f"error: {run.path} cannot start: there is no {words}\n  see: runner resume {shlex.quote(str(run.path))}",
        file=sys.stderr,
    )
    return EXIT_FAILED


def evaluate(config: Mapping[str, Any], argv: list[str]) -> int:
    """Evaluate a checkpoint of a run (`config["run"]`) on one split; returns the exit code."""
    trained = RunDirectory.open(Path(config["run"])).config()
    return _work(RunDirectory.claim(dict(config) | {"name": trained["name"], "seed": trained["seed"]}, "eval", argv))


def _show_result(result: Mapping[str, Any] | None) -> None:
    """The table that the run ended with."""
    if result is None:
        return
    from runner.tracking.console import make_console
    from runner.tracking.table import result_table

    tasks = {name: {k: math.nan if v is None else v for k, v in m.items()} for name, m in result["tasks"].items()}
    console = make_console("lines", 1)
    console.show(
        result_table(
            tasks,
            split=result["split"],
            headlines=result["headline"],
            directions=result["directions"],
            ascii_only=console.ascii_only,
        )
    )


def dry_run(config: Mapping[str, Any]) -> int:
    """Build everything but the data, print what would run, and leave nothing behind."""
    with tempfile.TemporaryDirectory(prefix="runner-dry-run-") as folder:
        (Path(folder) / "config.yaml").write_text(yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))
        return _attend(worker_command(Path(folder), "--dry-run"), [environment(config)])[0]


# ---- the worker ---------------------------------------------------------------------------------------------------


def _work(run: RunDirectory) -> int:
    code, stopped = _attend(worker_command(run.path), environments(run.config()))
    code, words = settle(run, code, stopped)
    if words:
        print(f"error: {words}\n  see: runner resume {shlex.quote(str(run.path))}", file=sys.stderr)
    return code


def _attend(command: list[str], environments: list[dict[str, str]]) -> tuple[int, bool]:
    """Run one child per environment, hand every stop signal on to all of them, and wait for the last.

    Returns:
        0, or the exit code of the child that failed first; and whether a stop was asked for.
    """
    with quiet_signals() as received:
        ranks, handed = Ranks(command, environments), 0
        while (code := ranks.wait(0.1)) is None:
            for number in received[handed:]:
                ranks.send(number)
                handed += 1
    return code, bool(received)
