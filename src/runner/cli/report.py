"""`runner report`: who won, by how much, and is it noise."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

from runner.cli.arguments import split_plain
from runner.cli.output import on_terminal, paint
from runner.errors import EXIT_DONE, Problem, UserError, suggest
from runner.reporting.delta_m import RULES, Definition

HELP = """\
usage: runner report PATH… [options]

Compares runs: one row per setting, seeds collapsed (mean ± standard deviation), only the keys that
vary, headline metrics, Δm against single-task baselines, cost, and whether a difference is noise.
A PATH is a sweep, a run, or any folder above them; failed and damaged runs are listed.

  --html FILE      write the page, one file without network; for one sweep it is always written,
                   to report.html in its directory
  --markdown       the tables as Markdown; --csv: numbers in full; --latex: booktabs
  --metrics WHICH  headline (default), all, or names: --metrics miou,depth/abs_err
  --delta-m NAME   survey (default), task_mean, metric_mean, auto_lambda or all; orders the rows
  --baseline WHAT  the zero of Δm: a folder with runs, a file with task: {metric: value}, or none
                   (default: what runs were trained against, else single-task runs among the paths)
  --split NAME     validation or test, instead of each run's final split
  --panels-mb N    room for prediction panels in the page, in MB (default 4; 0 leaves them out)

examples:
  runner report outputs/sweeps/demo-1f3a9c2e
  runner report outputs/train/demo --metrics all
  runner report outputs --baseline outputs/train/single --latex > table.tex
  runner report outputs/train/demo --html report.html
"""

FORMATS = ("--markdown", "--csv", "--latex")


def run(arguments: Sequence[str]) -> int:
    """Run the verb."""
    valued = ["--html", "--metrics", "--delta-m", "--baseline", "--split", "--panels-mb"]
    given, flags = split_plain(arguments, "report", ["PATH…"], flags=FORMATS, valued=valued, many=True)
    definitions, panels_mb = _check(flags)

    from runner.reporting import markup, page, text
    from runner.reporting.build import build
    from runner.reporting.grid import choose_metrics
    from runner.reporting.model import Metric, Table
    from runner.reporting.read import load

    found = load([Path(path).expanduser() for path in given])
    report = build(found, split=flags.get("--split"), baseline=flags.get("--baseline"), chosen=definitions[0])

    def metrics(table: Table) -> list[Metric]:
        return choose_metrics(table, flags.get("--metrics", "headline"))

    if "--markdown" in flags:
        sys.stdout.write(markup.markdown(report, metrics, definitions))
    elif "--csv" in flags:
        sys.stdout.write(markup.comma_separated(report, metrics))
    elif "--latex" in flags:
        sys.stdout.write(markup.latex(report, metrics, definitions))
    else:
        encoding = (sys.stdout.encoding or "").lower()
        width = shutil.get_terminal_size().columns if on_terminal() else None
        print(
            text.render(
                report,
                metrics=metrics,
                definitions=definitions,
                width=width,
                paint=paint,
                ascii_only=not encoding.startswith("utf"),
            ),
            end="",
        )
    target = Path(flags["--html"]).expanduser() if "--html" in flags else _own_page(given, flags)
    if target is not None:
        size = _write(target, page.render(report, panels_mb=panels_mb), asked="--html" in flags)
        if size and not any(name in flags for name in FORMATS):
            print(f"\npage: {target} ({size / 1e6:.1f} MB)")
    elif not any(name in flags for name in FORMATS):
        print(f"\npage with curves and configurations: runner report {shlex.join(given)} --html report.html")
    return EXIT_DONE


def _check(flags: Mapping[str, str]) -> tuple[list[str], float]:
    """The Δm definitions, the first of which orders the rows, and the room for panels.

    Raises:
        UserError: everything that is wrong with the options, at once.
    """
    problems: list[Problem] = []
    formats = [name for name in FORMATS if name in flags]
    if len(formats) > 1:
        problems.append(Problem(f"{' and '.join(formats)} exclude one another", "call it once for each"))
    name = flags.get("--delta-m", "survey")
    known = (*get_args(Definition), "all")
    if name not in known:
        problems.append(Problem(f"--delta-m: there is no definition '{name}'", suggest(name, known)))
    split = flags.get("--split")
    if split not in (None, "validation", "test"):
        problems.append(Problem(f"--split: there is no split '{split}'", suggest(str(split), ("validation", "test"))))
    panels_mb = 4.0
    try:
        panels_mb = float(flags.get("--panels-mb", panels_mb))
        if not 0 <= panels_mb <= 1000:
            raise ValueError
    except ValueError:
        problems.append(Problem(f"--panels-mb: '{flags['--panels-mb']}' is not a size in MB", "0 leaves panels out"))
    if problems:
        raise UserError(problems)
    return (list(RULES) if name == "all" else [name]), panels_mb


def _own_page(given: Sequence[str], flags: Mapping[str, str]) -> Path | None:
    """Where the page of one sweep goes by itself."""
    folder = Path(given[0]).expanduser()
    alone = len(given) == 1 and (folder / "sweep.json").is_file()
    return folder / "report.html" if alone and not any(name in flags for name in FORMATS) else None


def _write(target: Path, html: str, *, asked: bool) -> int:
    """Write the page; returns its size in bytes, 0 where a page that nobody asked for cannot be written.

    Raises:
        UserError: the file cannot be written.
    """
    from runner.files import write_atomic

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, html)
    except OSError as error:
        if asked:
            raise UserError(f"--html: '{target}' cannot be written: {error.strerror}", "give another place") from error
        print(f"\nnote: the page cannot be written to {target}: {error.strerror}; --html FILE puts it elsewhere")
        return 0
    return len(html.encode())
