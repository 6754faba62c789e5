"""`runner status` of a sweep: a line per job, from the run directories and Slurm's queue."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from typing import Any

from runner.cli import runs
from runner.cli.output import print_table
from runner.errors import EXIT_DONE, UserError
from runner.launching.sweepdir import Entry, SweepDirectory


def show(place: SweepDirectory, *, as_json: bool) -> int:
    """Print how a sweep is doing."""
    from runner.launching import slurm_queue

    info, entries = place.info(), place.entries()
    in_queue = slurm_queue.Queue({}, {})
    silent = ""
    try:
        in_queue = slurm_queue.queue(place)
    except UserError as error:  # the run directories say enough
        silent = error.problems[0].what
    rows = [_row(place, entry, info, in_queue.jobs) for entry in entries]
    needs = [_need(place, number, need, in_queue.needs) for number, need in enumerate(info["needs"])]
    if as_json:
        print(json.dumps({"sweep": info, "jobs": rows, "needs": needs}, indent=2))
        return EXIT_DONE
    arrays = slurm_queue.arrays(place)
    submitted = bool(arrays) or bool(len(in_queue))
    print(f"{'search' if info['verb'] == 'tune' else 'sweep'} {info['id']}")
    print(f"  command      runner {shlex.join(info['argv'])}")
    print(f"  jobs         {len(rows)}: {_count(row['state'] for row in rows)}")
    if needs:
        print(f"  needed       {len(needs)}: {_count(need['state'] for need in needs)}")
    if submitted:
        few = ", ".join(arrays[-4:]) or "none yet"
        more = f" and {len(arrays) - 4} before" if len(arrays) > 4 else ""
        print(f"  Slurm        array {few}{more}{f' (no word from it: {silent})' if silent else ''}")
    if in_queue.driver is not None:
        print(f"  driver       job {in_queue.driver.job}, {in_queue.driver}")
    print()
    columns = ["job", "state", *(["queue"] if submitted else []), "step", "overrides", "result"]
    print_table(columns, [[str(row.get(column) or "") for column in columns] for row in rows])
    waiting = [need for need in needs if need["state"] != "COMPLETED"]
    if waiting:
        print()
        columns = ["needed", "state", *(["queue"] if submitted else [])]
        print_table(columns, [[str(need.get(column) or "") for column in columns] for need in waiting])
    _tell_next(place, rows, bool(len(in_queue)))
    return EXIT_DONE


def _row(place: SweepDirectory, entry: Entry, info: dict[str, Any], queued: dict[int, Any]) -> dict[str, Any]:
    from runner.cli import status
    from runner.launching.board import last_step

    path = place.directory(entry)
    state, message = place.state(entry), ""
    if state not in ("WAITING", "DAMAGED"):
        record = runs.read_info(path)
        state = status.status(record)
        attempts = record.get("attempts") or []
        message = str(record.get("message") or (attempts[-1].get("message", "") if attempts else ""))
    keys = tuple(f"{key.lstrip('+')}=" for key in info["axes"])
    varied = [line for line in entry.overrides if line.lstrip("+").startswith(keys)] or entry.overrides
    return {
        "job": str(entry.number),
        "state": state,
        "queue": str(queued.get(entry.number, "")),
        "step": last_step(path) or "",
        "overrides": " ".join(varied),
        "result": status.headline(path) if state == "COMPLETED" else message,
        "path": str(path),
    }


def _need(place: SweepDirectory, number: int, need: dict[str, Any], queued: dict[int, Any]) -> dict[str, Any]:
    from runner.launching import needs
    from runner.launching.sweepdir import state_of

    wanted = needs.Need(need["role"], tuple(need["tasks"]), place.need_config(need["signature"]), need["signature"])
    path = needs.find(wanted) or next(iter(needs.candidates(wanted)), None)
    return {
        "needed": str(wanted),
        "state": "WAITING" if path is None else state_of(path),
        "queue": str(queued.get(number, "")),
        "path": None if path is None else str(path),
    }


def _count(states: Any) -> str:
    counts = Counter(str(state).split()[0].lower() for state in states)
    return ", ".join(f"{count} {state}" for state, count in counts.most_common())


def _tell_next(place: SweepDirectory, rows: list[dict[str, Any]], in_queue: bool) -> None:
    from runner.tracking.table import shell_path

    path = shell_path(place.path)
    fronts = place.fronts()
    print()
    if all(row["state"] == "COMPLETED" for row in rows):
        print(f"  see: runner report {path}")
    elif fronts:
        where = ", ".join(f"process {pid} on {host}" for host, pid in fronts)
        print(f"  runs in {where}; runner cancel {path} stops it")
    elif in_queue:
        print(f"  see: runner cancel {path}")
    else:
        print(f"  see: runner resume {path}")
