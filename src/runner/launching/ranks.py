"""The worker processes of one run: started, watched and signalled together, without waiting for them.

`runner.launching.front` waits for one group of them, `runner.launching.pool` watches many.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from runner.errors import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, EXIT_USER
from runner.launching.rundir import RunDirectory, Status, alive

PATIENCE_S = 10.0
"""How long the other ranks may take to end by themselves once one has failed."""

PARENT = "RUNNER_PARENT"
"""Environment variable: the process whose death stops the worker."""


class Ranks:
    """The processes of one run.

    Start it from the main thread: Linux ends a child together with the *thread* that started it.

    Args:
        command: the same for every rank.
        environments: one per rank.
        output: where stdout and stderr go; None: where those of this process go.
    """

    def __init__(
        self, command: Sequence[str], environments: Sequence[Mapping[str, str]], output: IO[bytes] | None = None
    ) -> None:
        self.stopped = False
        self._first_bad = 0
        self._deadline = math.inf
        parent = {PARENT: str(os.getpid())}
        # Sessions of their own: a Ctrl-C at the terminal reaches the ranks through this process only, once.
        self.processes = [
            subprocess.Popen(
                list(command),
                env={**environment, **parent},
                start_new_session=True,
                stdin=subprocess.DEVNULL if output is not None else None,
                stdout=output,
                stderr=subprocess.STDOUT if output is not None else None,
            )
            for environment in environments
        ]

    def poll(self) -> int | None:
        """0, or the exit code of the rank that failed first; None while one is still running.

        A rank that fails takes the others with it: they would wait for it in a collective operation.
        """
        running = [process for process in self.processes if process.poll() is None]
        failed = [process.returncode for process in self.processes if process.returncode]
        if failed and not self._first_bad:
            self._first_bad = failed[0]
            self._deadline = time.monotonic() + PATIENCE_S
        if running and time.monotonic() > self._deadline:
            self.send(signal.SIGKILL)
        return None if running else self._first_bad or EXIT_DONE

    def wait(self, timeout: float) -> int | None:
        """`poll`, after waiting for up to `timeout` seconds for one of the ranks to end."""
        running = next((process for process in self.processes if process.returncode is None), None)
        if running is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.wait(timeout=timeout)
        return self.poll()

    def send(self, number: int) -> None:
        """A signal to every rank that is still running; a stop signal is remembered as a wish to stop."""
        self.stopped = True if number != signal.SIGKILL else self.stopped
        for process in self.processes:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(number)


def worker_command(path: Path, *flags: str) -> list[str]:
    """The command line of a worker in the run directory `path`."""
    return [sys.executable, "-m", "runner.launching.worker", str(path), *flags]


def environments(config: Mapping[str, Any], **extra: str) -> list[dict[str, str]]:
    """The environment of every rank: torchrun's variables, which Accelerate reads.

    The front end starts the ranks itself: `accelerate launch` starts one process only where there is no GPU, and the
    parent that it (or torchrun) puts in between dies of stop signals before the ranks have saved.
    """
    launch = config["launch"]
    count = launch["num_processes"]
    common = environment(config) | extra
    if count == 1:
        return [common]
    if "OMP_NUM_THREADS" not in extra:
        common["OMP_NUM_THREADS"] = str(launch["threads"] or max(1, cores() // count))
    common |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(launch["port"] or free_port())}
    return [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def environment(config: Mapping[str, Any]) -> dict[str, str]:
    """What every worker gets, alone or not."""
    variables = dict(os.environ)
    threads = config["launch"].get("threads")
    if threads:
        variables["OMP_NUM_THREADS"] = str(threads)
    if config["launch"].get("device") == "cpu":
        variables["CUDA_VISIBLE_DEVICES"] = ""
    variables.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic matrix products on CUDA
    variables.setdefault("TOKENIZERS_PARALLELISM", "false")
    if "OMP_WAIT_POLICY" not in variables:
        # Threads that wait for one another spin, by default for milliseconds: two runs on the same cores then take
        # fifteen times as long as one. A tenth of a millisecond costs a run alone 2 percent.
        variables.setdefault("GOMP_SPINCOUNT", "10000")
    return variables


def cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def settle(run: RunDirectory, code: int, stopped: bool) -> tuple[int, str]:
    """The exit code of a run whose workers have ended, and a word about a worker that ended without one.

    A worker that was killed could not record its end: it is recorded in its place.

    Args:
        run: its directory.
        code: what `Ranks.poll` gave; negative for a signal.
        stopped: whether somebody asked the workers to stop.
    """
    words = ""
    if code < 0:
        status = run.info()["status"]
        if status in ("COMPLETED", "STOPPED"):  # a rank that died after the work was done
            code = EXIT_DONE if status == "COMPLETED" else EXIT_STOPPED
        elif status == "RUNNING" and elsewhere(run):
            words, code = f"another process is working in {run.path}", EXIT_STOPPED if stopped else EXIT_FAILED
        elif status in ("RUNNING", "CLAIMED"):
            words = f"the worker ended without a word (signal {signal.Signals(-code).name})"
            ended: Status = "STOPPED" if stopped else "FAILED"
            if status == "RUNNING":
                run.end_attempt(ended, message=words)
            else:
                run.update(status=ended)
            code = EXIT_STOPPED if stopped else EXIT_FAILED
    return (code if code in (EXIT_DONE, EXIT_FAILED, EXIT_USER, EXIT_STOPPED) else EXIT_FAILED), words


def elsewhere(run: RunDirectory) -> bool:
    """Whether a process on this machine works in a run's directory: after the end of its own workers, another's."""
    attempt = run.info()["attempts"][-1]
    return attempt.get("host") == socket.gethostname() and alive(attempt)
