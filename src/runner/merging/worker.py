"""The process of `runner merge`: reads the checked configuration from standard input, merges, says what it did.

    python -m runner.merging.worker [--dry-run] < config.json

The front end starts it; it is the only part of the verb that imports torch.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from runner.errors import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, UserError, first_line


def main(argv: list[str]) -> int:
    """Run the worker; returns the exit code."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        import torch  # while the front end checks the configuration

        config = json.loads(sys.stdin.read() or "null")
        if config is None:  # the front end found something wrong
            return EXIT_FAILED
        from runner.config import plugins

        plugins.register(config["plugins"])
        torch.set_num_threads(1)  # pieces are worked on side by side instead
        return run(config, dry="--dry-run" in argv)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on: files that are whole are kept", file=sys.stderr)
        return EXIT_STOPPED
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except Exception as error:
        if os.environ.get("RUNNER_DEBUG") == "1":
            traceback.print_exc()
        else:
            print(
                f"error: {type(error).__name__}: {first_line(error, '')}\n  RUNNER_DEBUG=1 shows the traceback",
                file=sys.stderr,
            )
        return EXIT_FAILED


def _interrupt(_number: int, _frame: Any) -> None:
    raise KeyboardInterrupt


def run(config: dict[str, Any], *, dry: bool = False) -> int:
    """Merge as a checked configuration says, or print the plan.

    Raises:
        UserError: with everything that is wrong.
        RunFailed: it could not be finished.
    """
    from runner.merging import stream as streaming
    from runner.merging import target as targets
    from runner.merging.estimate import print_plan
    from runner.merging.extras import copy_extras
    from runner.merging.prepare import prepare
    from runner.merging.progress import Progress

    began = time.perf_counter()
    merge, plan, tokens = prepare(config)
    out = Path(config["out"])
    threads = config["threads"] or max(1, min(8, len(os.sched_getaffinity(0))))
    budget = round(config["memory"] * 1e9)
    if dry:
        print_plan(merge, plan, config, threads=threads, budget=budget)
        return EXIT_DONE
    decides = {k: config[k] for k in ("merge", "include", "exclude", "dtype", "embed", "batchnorm", "shard_size")}
    mark = targets.fingerprint(decides, plan.models)
    if answered(out, mark):
        print(f"{out} is this very merge, done already")
        return EXIT_DONE
    for note in plan.notes:
        print(f"note: {note}")
    target = targets.Target(out, mark)
    progress = Progress()
    try:
        record = streaming.stream(
            merge,
            plan,
            target,
            shard_bytes=round(config["shard_size"] * 1e9),
            threads=threads,
            budget=budget,
            tell=progress.tell,
        )
        origin = plan.models.base or next(iter(plan.models.experts.values()))
        record["files"] = copy_extras(origin, target.folder, config["dtype"])
        if tokens is not None:
            tokens.write(target.folder)
        _write_record(target.folder, config, mark, record)
        target.publish()
    except OSError as error:
        raise streaming.unwritten(error, target) from error
    except UserError as error:
        progress.clear()
        if error.exit_code != EXIT_FAILED:  # nothing that the same command could go on with
            target.give_up()
        raise
    finally:
        progress.clear()
        target.close()
    _say_done(out, plan, time.perf_counter() - began)
    return EXIT_DONE


def answered(out: Path, mark: str) -> bool:
    """Whether `out` holds the result of the same merge."""
    try:
        return bool(json.loads((out / "merge.json").read_text(encoding="utf-8")).get("fingerprint") == mark)
    except (OSError, ValueError, AttributeError):
        return False


def _write_record(folder: Path, config: dict[str, Any], mark: str, record: dict[str, Any]) -> None:
    from runner import __version__
    from runner.files import write_json
    from runner.launching.rundir import now

    kept = {k: config[k] for k in ("merge", "base", "models", "names", "include", "exclude", "dtype", "embed")}
    kept["batchnorm"] = config["batchnorm"]
    write_json(
        folder / "merge.json",
        {"schema": 1, "runner": __version__, "created": now(), "fingerprint": mark, "config": kept} | record,
    )


def _say_done(out: Path, plan: Any, seconds: float) -> None:
    from runner.files import size_in_words
    from runner.merging.stream import describe_outputs

    size = sum(p.stat().st_size for p in out.rglob("*.safetensors"))
    print(f"{describe_outputs(plan)}")
    print(f"{out}: {size_in_words(size)} in {seconds:.1f} s")


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # everything is on disk; tearing down torch takes longer than it is worth
