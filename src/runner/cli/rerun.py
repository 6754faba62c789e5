"""`runner rerun`: a run once more, from its frozen configuration, and whether the numbers are the same."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from runner.cli import runs
from runner.cli.output import print_table, show_value
from runner.errors import EXIT_DONE, EXIT_FAILED, Problem, UserError, suggest

HELP = """\
usage: runner rerun DIR [KEY=VALUE…] [--tolerance 0.001] [--against RUN] [--json]

Runs the frozen configuration of a completed run again, in a new directory, and says whether the
numbers are the same: exactly, within the tolerance, or not; and what changed around them: packages,
commit, device. DIR may have been copied from another machine.

  KEY=VALUE          what does not affect weights: data_root=…, output_dir=…, launch.device=cpu, …
  --tolerance 0.001  largest relative difference that counts as the same
  --against RUN      run nothing: compare with a run that is there
  --json             the comparison for scripts; it is also written to rerun.json of the new run

examples:
  runner rerun outputs/train/demo/20260101T120000Z-3fa9c1d2-ab12
  runner rerun /from/a/colleague/RUN data_root=/data launch.device=cpu
  runner rerun outputs/train/demo/RUN_A --against outputs/train/demo/RUN_B

exit codes: 0 the numbers match, 1 they do not or the run failed, 2 the command is wrong, 75 stopped
"""
FLAGS = ("--tolerance", "--against", "--json", "--help")
SHOWN = {"exact": "exact", "close": "within tolerance", "different": "DIFFERENT", "missing": "ON ONE SIDE ONLY"}


def run(arguments: Sequence[str]) -> int:
    """Run the verb."""
    path, changes, tolerance, against, as_json = _split(arguments)
    old = runs.open_run(path, "rerun")
    info, result = runs.read_info(old), runs.read_result(old)
    if info.get("verb") != "train":
        raise UserError(f"'{old}' is a run of `{info.get('verb')}`: only `train` can be run again")
    if result is None:
        what = f"'{old}' has no result to compare with: it is {info.get('status')}"
        raise UserError(what, "finish it first", f"runner resume {old}")
    if against is not None:
        new = runs.open_run(against, "rerun")
        if runs.read_result(new) is None:
            raise UserError(f"'{new}' has no result to compare with", "finish it first", f"runner resume {new}")
        return _report(old, new, tolerance, as_json)
    config = _config(old, changes)
    new = Path(config["run_dir"])
    from runner.launching import front

    with _stdout_elsewhere() if as_json else contextlib.nullcontext():
        code = front.train(config, ["rerun", *arguments])
    if code != EXIT_DONE:
        # It can be gone on with like any run, and compared then.
        hint = f"to go on: runner resume {new}; then compare: runner rerun {old} --against {new}"
        print(f"the rerun is not complete\n  {hint}", file=sys.stderr)
        return code
    return _report(old, new, tolerance, as_json)


@contextlib.contextmanager
def _stdout_elsewhere() -> Iterator[None]:
    """What the run prints goes to stderr: stdout is for the JSON alone. Workers inherit the descriptor."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def _split(arguments: Sequence[str]) -> tuple[str, dict[str, str], float, str | None, bool]:
    given: list[str] = []
    changes: dict[str, str] = {}
    flags: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if name in ("--tolerance", "--against"):
            if not equals and not rest:
                raise UserError(f"{name} needs a value", see="runner rerun --help")
            flags[name] = value if equals else rest.pop(0)
        elif word == "--json":
            flags[name] = ""
        elif word.startswith("-"):
            raise UserError(f"unknown flag '{word}'", suggest(word, FLAGS), "runner rerun --help")
        elif equals and not Path(word).exists():
            changes[name.lstrip("+")] = value
        else:
            given.append(word)
    if len(given) != 1:
        what = "DIR is missing" if not given else f"too many arguments: '{' '.join(given[1:])}'"
        raise UserError(f"runner rerun: {what}", "usage: runner rerun DIR [KEY=VALUE…]", "runner rerun --help")
    try:
        tolerance = float(flags.get("--tolerance", "0.001"))
        if not 0 <= tolerance < 1:
            raise ValueError
    except ValueError:
        what = f"--tolerance must be a number from 0 to below 1, not '{flags['--tolerance']}'"
        raise UserError(what, "such as 0.001, a tenth of a percent") from None
    return given[0], changes, tolerance, flags.get("--against"), "--json" in flags


def _config(old: Path, changes: Mapping[str, str]) -> dict[str, Any]:
    """The frozen configuration, with places and the like changed, and a new run directory claimed by name.

    Raises:
        UserError: with everything that is wrong with the changes, the configuration or the data.
    """
    from runner.config import schema, static
    from runner.config.preflight import check_data, cross_check
    from runner.config.signature import signature

    config = runs.read_config(old)
    before = deepcopy(config)
    # A run of an earlier version may lack keys that have come since.
    for section in schema.SECTIONS:
        if isinstance(config.get(section), dict):
            config[section] = {**schema.section_defaults(section), **config[section]}
    problems = [problem for key, text in changes.items() if (problem := _change(config, key, text)) is not None]
    config["run_dir"] = None
    if "output_dir" not in changes:  # that of the run, if it still lies there
        home = Path(str(config.get("output_dir")))
        config["output_dir"] = str(home if home in old.absolute().parents else Path("outputs").absolute())
    for key in ("output_dir", "data_root"):
        config[key] = str(Path(str(config[key])).expanduser().absolute())
    from runner.config import plugins

    problems += plugins.register(config.get("plugins") or [])
    report = static.Report()
    static.check_train(config, report)
    if not report.found:
        cross_check(config, report)
    problems += [problem for _, problem in report.found]
    problems += check_data(config) if not problems else []
    if problems:
        raise UserError(problems)
    recorded = runs.read_info(old).get("signature")
    if signature(before) != recorded:
        print(
            f"warning: the signature of {old / 'config.yaml'} is {signature(before)}, the run recorded {recorded}: "
            "the file was edited, or another version of runner wrote it",
            file=sys.stderr,
        )
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    place = Path(config["output_dir"]) / "train" / str(config["name"])
    config["run_dir"] = str(place / f"{stamp}-{signature(config)}-{secrets.token_hex(2)}")
    return config


def _change(config: dict[str, Any], key: str, text: str) -> Problem | None:
    """Set one key; returns what is wrong with it."""
    import yaml

    from runner.config.signature import affects_weights, flatten

    known = sorted(k for k, _ in flatten(config) if not affects_weights(k) and k != "run_dir")
    if key not in known:
        if any(key == k or k.startswith(f"{key}.") for k, _ in flatten(config)):
            what = f"'{key}' affects the weights: a rerun keeps it"
            return Problem(what, f"these may change: {', '.join(known)}", "runner train --help")
        return Problem(f"unknown key '{key}'", suggest(key, known, limit=24), "runner rerun --help")
    try:
        value = yaml.safe_load(text) if text else None
    except yaml.YAMLError:
        return Problem(f"the value of '{key}={text}' cannot be read", "quote text with special characters")
    node = config
    *parents, leaf = key.split(".")
    for parent in parents:
        node = node[parent]
    node[leaf] = value
    return None


def _report(old: Path, new: Path, tolerance: float, as_json: bool) -> int:
    """Print the comparison, keep it in the new run's directory, and return the exit code."""
    from runner.files import write_json
    from runner.reporting import match

    sides = [{"info": runs.read_info(p), "result": runs.read_result(p)} for p in (old, new)]
    matches = match.compare(sides[0]["result"] or {}, sides[1]["result"] or {}, tolerance)
    worst = match.overall(matches)
    weights = match.same_weights(old, new)
    around = match.circumstances(*sides)
    summary = {
        "schema": 1,
        "of": str(old.absolute()),
        "run": str(new.absolute()),
        "verdict": worst,
        "tolerance": tolerance,
        "same_weights": weights,
        "metrics": [m.as_json() for m in matches],
        "circumstances": [{"what": what, "before": a, "now": b} for what, a, b in around],
    }
    write_json(new / "rerun.json", summary)
    matching = worst in ("exact", "close")
    if as_json:
        print(json.dumps(summary, indent=2, ensure_ascii=False))
        return EXIT_DONE if matching else EXIT_FAILED
    rows = [
        [m.split, m.task, m.metric, show_value(m.before), show_value(m.now), _change_of(m), SHOWN[m.verdict]]
        for m in matches
    ]
    print(f"\n{old}\nagainst its rerun {new}\n")
    print_table(["split", "task", "metric", "before", "now", "change", ""], rows)
    if around:
        print()
        print_table(["what else differs", "before", "now"], [list(row) for row in around])
    counts = {v: sum(m.verdict == v for m in matches) for v in SHOWN}
    words = {
        "exact": "every number is exactly the same",
        "close": f"the numbers match within {tolerance:g}",
        "different": "the numbers DO NOT MATCH",
        "missing": "the numbers DO NOT MATCH: some are on one side only",
    }[worst]
    detail = ", ".join(f"{count} {SHOWN[v].lower()}" for v, count in counts.items() if count)
    print(f"\n{words}: {len(matches)} numbers, {detail}")
    if weights is not None:
        print(f"the best weights are {'the same, bit for bit' if weights else 'not the same bits'}")
    if worst == "different" and around:
        print("what else differs, above, may explain it")
    return EXIT_DONE if matching else EXIT_FAILED


def _change_of(match: Any) -> str:
    return "" if match.change is None or match.verdict == "exact" else f"{match.change:+.3g}"
