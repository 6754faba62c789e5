"""The process that exports: `python -m runner.exporting.worker RUN DIR CHECKPOINT [--license ID] [--data-root DIR]`.

Started by `runner export`, which itself never imports torch.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from runner.errors import EXIT_DONE, UserError, crashed


def main(argv: list[str]) -> int:
    """Export, say what came of it, and return the exit code."""
    parser = argparse.ArgumentParser(prog="runner.exporting.worker")
    parser.add_argument("run")
    parser.add_argument("to")
    parser.add_argument("checkpoint")
    parser.add_argument("--license", default=None)
    parser.add_argument("--data-root", default=None)
    given = parser.parse_args(argv)
    try:
        from runner.exporting.folder import export
        from runner.launching.rundir import RunDirectory

        to = Path(given.to)
        trunks = export(RunDirectory.open(Path(given.run)), to, given.checkpoint, given.license, given.data_root)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except Exception as error:
        return crashed(error)
    print(f"exported {given.run} to {to}")
    for trunk in trunks:
        if trunk.folder is None:
            print(f"  {trunk.name}: {trunk.library} cannot load it: {trunk.problem}; runner.exporting.load reads it")
            continue
        print(f"  {trunk.name}: {trunk.call(str(to / trunk.folder))}")
        print(f"    warning: {trunk.problem}" if trunk.problem else "    loaded again: the same features")
    print(f'  heads and the rest: runner.exporting.load("{to}")\n  model card: {to / "README.md"}')
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
