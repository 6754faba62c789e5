"""`runner data`: what data sets there are, whether they are there and right, and how to come by them."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from runner.cli.arguments import split_plain
from runner.cli.output import on_terminal, print_table
from runner.config import paths
from runner.errors import EXIT_DONE, EXIT_FAILED, UserError, suggest

HELP = """\
usage: runner data list [--root DIR] [--json]
       runner data verify NAME [KEY=VALUE…] [--root DIR] [--all] [--json]
       runner data prepare NAME [KEY=VALUE…] [--root DIR] [--from DIR|URL] [--keep] [--no-convert]

list     every data set: licence, size, whether it is there, and where
verify   counts its examples, reads some, and says what is missing, damaged or implausible
prepare  downloads it where its licence allows, going on with a broken download, converts it once
         into a form that is fast to read, and verifies it; where the licence forbids that, it says
         what to fetch and where to put it

  --root DIR         where data sets lie; default: RUNNER_DATA, else ./data
  --from DIR|URL     take the published files from a folder, or from a mirror
  --all              read every example, not 64 of a split
  --keep             keep downloaded archives; --no-convert leaves the data as it is published
  KEY=VALUE          the mixture's keys, such as mixture.path=DIR or mixture.size=[32,32]
  --config-dir DIR   your own mixtures too

examples:
  runner data list
  runner data prepare qm9 --root data
  runner data verify nyud mixture.path=/sets/NYUD_MT --all
"""
ACTIONS = ("list", "verify", "prepare")
FLAGS = {
    "list": ["--json"],
    "verify": ["--json", "--all"],
    "prepare": ["--all", "--keep", "--no-convert"],
}
VALUED = {"list": ["--root", "--config-dir"], "verify": ["--root", "--config-dir"]}
VALUED["prepare"] = [*VALUED["verify"], "--from"]
SAMPLE = 64
"""Examples of every split that are read."""


def run(arguments: Sequence[str]) -> int:
    """Run the verb."""
    action = arguments[0] if arguments else ""
    if action not in ACTIONS:
        what = f"runner data cannot '{action}'" if action else "runner data: say what to do"
        raise UserError(what, suggest(action, ACTIONS), "runner data --help")
    positions = [] if action == "list" else ["NAME", "[KEY=VALUE…]"]
    given, flags = split_plain(
        arguments[1:],
        "data",
        positions,
        optional=1 if positions else 0,
        flags=FLAGS[action],
        valued=VALUED[action],
        many=bool(positions),
    )
    usual = os.environ.get("RUNNER_DATA") or "data"
    root = flags.get("--root") or usual
    if action == "list":
        return _list(root, flags)
    name, overrides = given[0], given[1:]
    wrong = [word for word in overrides if "=" not in word]
    if wrong:
        raise UserError(f"'{wrong[0]}' is no KEY=VALUE", "such as mixture.path=DIR", "runner data --help")
    if action == "verify":
        return _verify(name, overrides, root, flags)
    return _prepare(name, overrides, root, usual, flags)


def _list(root: str, flags: Mapping[str, str]) -> int:
    from runner.mixtures.obtain.catalogue import catalogue

    entries = catalogue(root, paths.roots(flags.get("--config-dir")))
    if "--json" in flags:
        found = [
            {
                "name": e.option.name,
                "summary": e.option.summary,
                "licence": e.option.notes["licence"],
                "size": e.option.notes.get("size"),
                "state": e.state,
                "places": [str(p) for p in e.places],
                "problems": [p.what for p in e.problems],
            }
            for e in entries
        ]
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return EXIT_DONE
    rows = [
        [e.option.name, e.state, _shown(e.places), e.option.notes["licence"], e.option.notes.get("size", "")]
        for e in entries
    ]
    print_table(["data set", "state", "where", "licence", "size"], rows)
    looked = dict.fromkeys([Path(root).expanduser().absolute(), Path.cwd() / "data", Path.cwd()])
    print(f"\nlooked for in {', '.join(map(str, looked))}")
    print("what is missing: runner data prepare NAME --root DIR; mixture=rooms needs no data")
    return EXIT_DONE


def _shown(places: Sequence[Path]) -> str:
    """One place, or the folder that several share."""
    if len(places) < 2:
        return "".join(map(str, places))
    return f"{os.path.commonpath(places)} ({len(places)} parts)"


def _verify(name: str, overrides: Sequence[str], root: str, flags: Mapping[str, str]) -> int:
    from runner.mixtures.obtain.catalogue import open_mixture, read_config
    from runner.mixtures.obtain.verify import as_json, verify

    mixture = open_mixture(read_config(name, overrides, flags.get("--config-dir")), root)
    progress = Progress(quiet="--json" in flags)
    report = verify(mixture, None if "--all" in flags else SAMPLE, progress)
    progress.end()
    if "--json" in flags:
        print(json.dumps(as_json(report), indent=2, ensure_ascii=False))
        return EXIT_FAILED if report.problems else EXIT_DONE
    return _say(name, report, flags.get("--config-dir"))


def _say(name: str, report: object, folder: str | None) -> int:
    """Print what was seen; 1 where something is wrong."""
    from runner.cli.main import print_problems
    from runner.mixtures.obtain.verify import Report, rows

    assert isinstance(report, Report)
    for split, (count, expected) in report.counts.items():
        published = "" if expected is None else ", as published" if count == expected else f", published {expected:,}"
        print(f"{split}: {count:,} examples{published}")
    print_table(["split", "examples", "read", "what", "values", "no label"], rows(report))
    sys.stdout.flush()
    if report.problems:
        print_problems(report.problems)
        return EXIT_FAILED
    print(f"'{name}' is right")
    own = f"--config-dir {shlex.quote(folder)} " if folder else ""
    print(f"  train on it: runner train {own}mixture={name} --dry-run")
    return EXIT_DONE


def _prepare(name: str, overrides: Sequence[str], root: str, usual: str, flags: Mapping[str, str]) -> int:
    """What is in the `usual` root is converted into the given one."""
    from runner.mixtures.obtain.catalogue import open_mixture, read_config
    from runner.mixtures.obtain.prepare import obtain
    from runner.mixtures.obtain.verify import verify
    from runner.mixtures.published import Preparable

    config = read_config(name, overrides, flags.get("--config-dir"))
    mixture = open_mixture(config, root)
    if not isinstance(mixture, Preparable):
        missing = mixture.check()
        if missing:
            raise UserError(missing)
        print(f"'{name}' is there, and is read as it is: there is nothing to prepare")
        return _say(name, verify(mixture, SAMPLE, Progress()), flags.get("--config-dir"))
    target = Path(root).expanduser() / mixture.folder
    progress = Progress()
    elsewhere = open_mixture(config, usual) if mixture.located is None else mixture
    assert isinstance(elsewhere, Preparable)
    if elsewhere.located is not None:
        print(f"'{name}' is there: {elsewhere.located}")
        mixture = elsewhere
    else:
        obtain(mixture, target, flags.get("--from"), "--keep" in flags, print, progress)
        progress.end()
        mixture = open_mixture(config, root)
        assert isinstance(mixture, Preparable)
    if problems := mixture.check():
        raise UserError(problems)
    if mixture.converted:
        print("it is in its fast form")
    elif "--no-convert" not in flags:
        print(mixture.convert(target, progress))
        progress.end()
        mixture = open_mixture(config, root)
    report = verify(mixture, None if "--all" in flags else SAMPLE, progress)
    progress.end()
    return _say(name, report, flags.get("--config-dir"))


class Progress:
    """Long work on a terminal: one line that changes; elsewhere a line at every tenth.

    Args:
        quiet: say nothing.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._quiet, self._live = quiet, on_terminal(sys.stderr)
        self._what, self._start, self._last, self._tenth = "", 0.0, 0.0, -1

    def __call__(self, what: str, done: int, total: int) -> None:
        """Told what is being done, how much of it, and of how much."""
        now = time.monotonic()
        if self._quiet:
            return
        if what != self._what:
            self.end()
            self._what, self._start, self._last, self._tenth = what, now, 0.0, -1
        tenth = 10 * done // total if total else 0
        due = now - self._last >= 0.2 or done == total if self._live else tenth != self._tenth and now > self._start + 5
        if not due:
            return
        self._last, self._tenth = now, tenth
        text = f"{what}: {_amount(done)}" + (f" of {_amount(total)}" if total else "")
        if 0 < done < total:
            text += f", {(now - self._start) / done * (total - done):.0f} s to go"
        print(f"\r\033[K{text}" if self._live else text, end="" if self._live else "\n", file=sys.stderr, flush=True)

    def end(self) -> None:
        """The line is finished."""
        if self._live and self._what and self._last:
            print(file=sys.stderr)
        self._what = ""


def _amount(number: int) -> str:
    return f"{number / 1e6:,.1f} M" if number >= 10_000_000 else f"{number:,}"
