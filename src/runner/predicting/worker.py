"""The process that predicts: `python -m runner.predicting.worker RUN IMAGE DIR CHECKPOINT [--raw] …`.

Started by `runner predict`, which itself never imports torch.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from runner.errors import EXIT_DONE, EXIT_FAILED, UserError, crashed


def main(argv: list[str]) -> int:
    """Predict, say what came of it, and return the exit code."""
    parser = argparse.ArgumentParser(prog="runner.predicting.worker")
    parser.add_argument("run", type=Path)
    parser.add_argument("image", type=lambda text: Path(text).expanduser())
    parser.add_argument("to", type=Path)
    parser.add_argument("checkpoint")
    parser.add_argument("--size", default="model")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--raw", action="store_true")
    given = parser.parse_args(argv)
    try:
        from runner.cli.predict import pictures
        from runner.launching.rundir import RunDirectory
        from runner.predicting.pictures import folders, read, write
        from runner.predicting.predictor import Predictor

        predictor = Predictor.open(RunDirectory.open(given.run), given.checkpoint, given.device)
        paths = pictures(given.image)
        began, failed = time.perf_counter(), []
        for path, folder in zip(paths, folders(paths, given.image, given.to), strict=True):
            try:
                image = read(path)
            except UserError as error:
                failed.append(error)
                print(error, file=sys.stderr)
                continue
            write(folder, path.name, image, predictor.predict(image, given.size), predictor.tasks, given.raw)
            print(f"{path} -> {folder}", flush=True)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except Exception as error:
        return crashed(error)
    done, seconds = len(paths) - len(failed), time.perf_counter() - began
    if done:
        what = f"{done} picture{'s' if done > 1 else ''}"
        print(f"{what} in {seconds:.1f} s: {', '.join(predictor.tasks)}")
        if predictor.others:
            print(f"not dense, so left out: {', '.join(predictor.others)}")
    if failed:
        print(f"{len(failed)} of {len(paths)} files could not be read", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
