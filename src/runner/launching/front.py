"""The front end: claims a run directory and starts one worker per run. Never imports torch."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from runner.config.signature import signature, weights_diff
from runner.errors import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, EXIT_USER, UserError
from runner.files import write_atomic
from runner.launching import needs
from runner.launching.rundir import RunDirectory, Status

_PATIENCE_S = 10.0
"""How long the other ranks may take to end by themselves once one has failed."""

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


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
        return resume(path) if path is not None else _train(RunDirectory.claim(need.config, "train", need.argv(argv)))

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
        print(f"stopped before {run.path} started\n  see: runner resume {run.path}", file=sys.stderr)
        return EXIT_STOPPED
    words = ", ".join(map(str, lost))
    if all(need.role == "baseline" for need in lost):
        print(f"warning: there is no {words}: the result will have no Δm", file=sys.stderr)
        return EXIT_DONE
    run.update(status="FAILED", message=f"there is no {words}")
    print(f"error: {run.path} cannot start: there is no {words}\n  see: runner resume {run.path}", file=sys.stderr)
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
        command = [sys.executable, "-m", "runner.launching.worker", folder, "--dry-run"]
        return _spawn(command, [_environment(config)])[0]


def refuse_changes(old: Mapping[str, Any], new: Mapping[str, Any], path: Path) -> None:
    """Raise UserError when two configurations would not give the same weights."""
    changes = weights_diff(old, new)
    if changes:
        shown = "; ".join(f"{key}: {before!r} → {after!r}" for key, before, after in changes[:8])
        raise UserError(
            f"{path} holds a run with another configuration: {shown}",
            "a run keeps what affects its weights: leave run_dir out to start a new run, or undo the change",
            f"runner status {path}",
        )


# ---- the worker ---------------------------------------------------------------------------------------------------


def _work(run: RunDirectory) -> int:
    config = run.config()
    command = [sys.executable, "-m", "runner.launching.worker", str(run.path)]
    code, stopped = _spawn(command, _rank_environments(config))
    info = run.info()
    if code < 0 and info["status"] in ("COMPLETED", "STOPPED"):  # a rank that died after the work was done
        code = EXIT_DONE if info["status"] == "COMPLETED" else EXIT_STOPPED
    if code < 0 and info["status"] in ("RUNNING", "CLAIMED"):
        code = _ended_without_a_word(run, info["status"], code, stopped)
    return code if code in (EXIT_DONE, EXIT_FAILED, EXIT_USER, EXIT_STOPPED) else EXIT_FAILED


def _ended_without_a_word(run: RunDirectory, status: str, code: int, stopped: bool) -> int:
    """A worker that was killed could not record its end: do it in its place."""
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    ended: Status = "STOPPED" if stopped else "FAILED"
    if status == "RUNNING":
        run.end_attempt(ended, message=f"the worker ended without a word ({how})")
    else:
        run.update(status=ended)
    print(f"error: the worker ended without a word ({how})\n  see: runner resume {run.path}", file=sys.stderr)
    return EXIT_STOPPED if stopped else EXIT_FAILED


def _rank_environments(config: Mapping[str, Any]) -> list[dict[str, str]]:
    """The environment of every rank: torchrun's variables, which Accelerate reads.

    The front end starts the ranks itself: `accelerate launch` starts one process only where there is no GPU, and the
    parent that it (or torchrun) puts in between dies of stop signals before the ranks have saved.
    """
    launch = config["launch"]
    count = launch["num_processes"]
    common = _environment(config)
    if count == 1:
        return [common]
    common["OMP_NUM_THREADS"] = str(launch["threads"] or max(1, (os.cpu_count() or 1) // count))
    common |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(launch["port"] or _free_port())}
    return [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def _environment(config: Mapping[str, Any]) -> dict[str, str]:
    environment = dict(os.environ)
    threads = config["launch"].get("threads")
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    if config["launch"].get("device") == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    environment.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic matrix products on CUDA
    environment.setdefault("TOKENIZERS_PARALLELISM", "false")
    return environment


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _spawn(command: list[str], environments: list[dict[str, str]]) -> tuple[int, bool]:
    """Run one child per environment, hand every stop signal on to all of them, and wait for the last.

    A child that fails takes the others with it: they would wait for it in a collective operation.

    Returns:
        0, or the exit code of the child that failed first; and whether a stop was asked for.
    """
    with _quiet_signals() as received:
        # Sessions of their own: a Ctrl-C at the terminal reaches the children through this process only, once.
        children = [subprocess.Popen(command, env=e, start_new_session=True) for e in environments]
        handed, first_bad, deadline = 0, 0, math.inf
        while any(child.poll() is None for child in children):
            for number in received[handed:]:
                _signal(children, number)
                handed += 1
            failed = [child.returncode for child in children if child.returncode]
            if failed and not first_bad:
                first_bad = failed[0]
                deadline = time.monotonic() + (_PATIENCE_S if len(children) > 1 else math.inf)
            if time.monotonic() > deadline:
                _signal(children, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                next(child for child in children if child.returncode is None).wait(timeout=0.1)
    codes = [child.returncode for child in children if child.returncode]
    return first_bad or (codes[0] if codes else EXIT_DONE), bool(received)


def _signal(children: list[subprocess.Popen[bytes]], number: int) -> None:
    for child in children:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(number)


@contextlib.contextmanager
def _quiet_signals() -> Iterator[list[int]]:
    """Collect stop signals instead of dying of them."""
    received: list[int] = []
    previous = {}
    for number in FORWARDED:
        previous[number] = signal.signal(number, lambda n, _frame: received.append(n))
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
