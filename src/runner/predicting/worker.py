"""The process that predicts: `python -m runner.predicting.worker`, with a `Request` on its standard input.

Started by `runner predict`, which itself never imports torch.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from runner.errors import EXIT_DONE, EXIT_FAILED, UserError, crashed
from runner.predicting.request import Request

if TYPE_CHECKING:
    from runner.predicting.opened import Opened

EXIT_INTERRUPTED = 130


def main(request: Request) -> int:
    """Predict, say what came of it, and return the exit code."""
    try:
        from runner.launching.rundir import RunDirectory
        from runner.predicting.accepts import accepted, check
        from runner.predicting.answering import answer
        from runner.predicting.opened import Opened

        run = RunDirectory.open(Path(request.run))
        found = accepted(run.config(), run.path, request)
        check(found, run.path, request)
        opened = Opened.open(run, request.checkpoint, request.device, request.data_root)
        codes = [_colour(opened, found.dense, request)] if found.dense else []
        codes += [answer(opened, found.others, request)] if found.others else []
        return max(codes)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\nstopped; a table that was begun is not there", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        return crashed(error)


def _colour(opened: Opened, tasks: list[str], request: Request) -> int:
    """The pictures of dense tasks."""
    from runner.predicting.images import pictures
    from runner.predicting.pictures import folders, read, write
    from runner.predicting.predictor import Predictor

    assert request.folder is not None, "the front end has asked for --to"
    predictor = Predictor.of(opened, tasks)
    given = Path(str(request.image)).expanduser()
    paths = pictures(given)
    began, failed = time.perf_counter(), 0
    for path, folder in zip(paths, folders(paths, given, request.folder), strict=True):
        try:
            image = read(path)
        except UserError as error:
            failed += 1
            print(error, file=sys.stderr)
            continue
        predictions = predictor.predict(image, "native" if request.size == "native" else "model")
        write(folder, path.name, image, predictions, predictor.tasks, request.raw)
        print(f"{path} -> {folder}", flush=True)
    done, seconds = len(paths) - failed, time.perf_counter() - began
    if done:
        print(f"{done} picture{'s' if done > 1 else ''} in {seconds:.1f} s: {', '.join(predictor.tasks)}")
    if failed:
        print(f"{failed} of {len(paths)} files could not be read", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main(Request.parse(sys.stdin.read())))
