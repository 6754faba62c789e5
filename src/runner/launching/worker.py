"""One process of one run: reads the frozen configuration and does the work.

    python -m runner.launching.worker RUN_DIR [--dry-run]

Started by a front end (`front`, `pool`) or by an element of a Slurm array, once per process of the run, with torchrun's
variables where there are several. It never composes a configuration.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import IO

import yaml

from runner.errors import EXIT_FAILED, EXIT_STOPPED, EXIT_USER, UserError
from runner.launching.locks import hold
from runner.launching.ranks import PARENT
from runner.launching.rundir import LOCK, RunDirectory, Status
from runner.launching.signals import StopFlag


def main(argv: list[str]) -> int:
    """Run the worker; returns the exit code."""
    # A signal that arrives while torch is still being imported must not kill the run unsaid.
    flag = StopFlag().install()
    folder, dry = Path(argv[0]), "--dry-run" in argv[1:]
    rank = int(os.environ.get("RANK", "0"))
    run = None if dry else RunDirectory.open(folder)
    if not _stop_with_parent():
        return EXIT_STOPPED
    if run is not None:
        _log_to(folder / ("train.log" if rank == 0 else f"rank{rank}.log"), rank)
    lock = None
    try:
        if run is None:
            config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
            from runner.training.summary import print_summary

            print_summary(config)
            return 0
        lock = _lock(folder) if rank == 0 else None
        if run.info()["status"] == "COMPLETED":  # finished by the process that held the lock before
            return 0
        if run.info()["verb"] == "eval":
            from runner.training.verbs import evaluate_run

            return evaluate_run(run)
        if (run.config().get("merge") or {}).get("_target_"):
            from runner.merging.launched import merge_run

            return merge_run(run, flag)
        from runner.training.loop import train

        return train(run, flag)
    except KeyboardInterrupt:
        _record(run, lock, "STOPPED", "interrupted twice, nothing was saved after the last checkpoint", EXIT_STOPPED)
        return EXIT_STOPPED
    except UserError as error:  # RunFailed too
        if rank == 0:
            print(error, file=sys.stderr)
        if run is not None:
            logging.getLogger("runner").error("%s", error)
        _record(run, lock, "FAILED", error.problems[0].what, error.exit_code)
        return error.exit_code
    except Exception as error:
        trace = traceback.format_exc()
        if run is not None:
            logging.getLogger("runner").error("%s", trace)
        if os.environ.get("RUNNER_DEBUG") == "1" or run is None:
            print(trace, file=sys.stderr)
        elif rank == 0:
            print(
                f"error: {type(error).__name__}: {error}\n  the traceback is in {run.path / 'train.log'}",
                file=sys.stderr,
            )
        _record(run, lock, "FAILED", f"{type(error).__name__}: {error}", EXIT_FAILED)
        return EXIT_FAILED
    finally:
        if lock is not None:
            lock.close()


def _stop_with_parent() -> bool:
    """Ask Linux for SIGTERM when the front end dies: an orphan would go on in a directory that somebody resumes.

    Returns:
        False when it is dead already, too early to be told.
    """
    parent = os.environ.get(PARENT)
    if sys.platform != "linux" or parent is None:
        return True
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
    return os.getppid() == int(parent)


def _lock(folder: Path, patience_s: float = 60.0) -> IO[str]:
    """Hold the run's directory for this process; the lock goes with the process, however it ends.

    Raises:
        UserError: another worker still holds it after `patience_s`.
    """
    deadline = time.monotonic() + patience_s
    while (file := hold(folder / LOCK)) is None:
        if time.monotonic() > deadline:
            raise UserError(
                f"another process is working in {folder}", "wait for it, or stop it", f"runner status {folder}"
            )
        time.sleep(0.2)
    return file


def _record(run: RunDirectory | None, lock: IO[str] | None, status: Status, message: str, code: int) -> None:
    """Write the end into `run.json`; a process that does not hold the directory has no say."""
    if run is not None and lock is not None:
        run.end_attempt(status, message=message)
        run.update(exit_code=code)


def _log_to(path: Path, rank: int) -> None:
    """Messages and warnings of every library go to the run's log; the console stays calm."""
    logging.basicConfig(
        filename=path,
        level=logging.INFO,
        format=f"%(asctime)s %(levelname)s rank{rank} %(name)s: %(message)s",
    )
    logging.captureWarnings(True)
    warnings.simplefilter("default")
    for noisy in ("urllib3", "fsspec", "filelock", "httpx", "httpx2"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    # Late signals must not turn a finished run into a failed one.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    assert code in (0, EXIT_FAILED, EXIT_USER, EXIT_STOPPED)
    if "RANK" in os.environ:
        # Everything is on disk. What is left is tearing down the process group, whose threads now and then abort the
        # process ("terminate called without an active exception"): a run that is complete must not end like that.
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
