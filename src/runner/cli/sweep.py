"""`runner train -m`: a grid of jobs, checked as a whole, in one directory, here or through Slurm."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from runner.cli.arguments import HydraArguments
from runner.cli.output import print_notes
from runner.config import paths
from runner.config.compose import Composed
from runner.config.grid import COMPARISONS, Grid, check, expand
from runner.config.signature import signature
from runner.errors import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, EXIT_USER, Problem, UserError, suggest
from runner.launching.sweepdir import Entry, SweepDirectory, identifier

FIRST_LINES = 40
"""So many jobs of a sweep are listed by --dry-run."""


def refuse(problems: Sequence[Problem]) -> None:
    """Raise what composing found, if anything."""
    if problems:
        raise UserError(list(problems))


# ---- Hydra's own flags ---------------------------------------------------------------------------------------------


def hydra_answers(name: str, overrides: list[str], request: HydraArguments) -> int:
    """Let Hydra answer one of its own flags, such as --cfg job."""
    folders = paths.roots(request.config_dir)
    # Hydra searches config_path first: the user's own folder hides shipped options of the same name.
    extra = ["--config-dir", str(folders[1])] if len(folders) > 1 else []
    before, sys.argv = sys.argv, ["runner", *extra, *request.flags, *overrides]
    try:
        hydra.main(version_base="1.3", config_path=str(folders[0]), config_name=name)(_unused)()
    except SystemExit as error:  # how Hydra ends its help
        return EXIT_USER if error.code else EXIT_DONE
    finally:
        sys.argv = before
    return EXIT_DONE


def check_package(composed: Composed, flags: Sequence[str]) -> None:
    """Refuse `--package` of a section that does not exist, in our words."""
    if "--package" in flags:
        package = flags[flags.index("--package") + 1]
        if package != "_global_" and OmegaConf.select(composed.config, package, throw_on_missing=False) is None:
            keys = [str(key) for key in composed.config if key != "hydra"]
            raise UserError(
                f"--package: there is no '{package}' in the configuration", suggest(package, keys, limit=20)
            )


def _unused(config: DictConfig) -> None:
    raise AssertionError("Hydra answers its flags without running anything")


# ---- sweeps ----------------------------------------------------------------------------------------------------------


def sweep(composed: Composed, request: HydraArguments, argv: Sequence[str]) -> int:
    """Check every job of a multirun, give the sweep its directory, and run what is not completed.

    Args:
        composed: the first job. request: the command line, sorted. argv: the command line as it was given.

    Returns:
        0 when all are done, 1 when some failed, 75 when they were stopped and can be continued.
    """
    refuse(composed.problems)
    grid = expand(composed)
    check(grid, request.config_dir, _progress(len(grid.points)))
    print_notes(grid.notes)
    configs = [point.config for point in grid.points]
    launch = _common_launch(configs)
    if any(config["run_dir"] for config in configs):
        raise UserError("run_dir pins the folder of one run", "sweep_dir=DIR pins the folder of a sweep")
    notice = _baseline_by_default(grid)
    if request.dry_run and launch["scheduler"] == "local":
        return _dry(grid)
    first = configs[0]
    name = (
        first["name"]
        if len({config["name"] for config in configs}) == 1
        else composed.choices.get("experiment", grid.name)
    )
    id = identifier(name, grid.identity)
    place = SweepDirectory(Path(first["sweep_dir"] or Path(first["output_dir"]) / "sweeps" / id))
    more = ["--config-dir", request.config_dir] if request.config_dir else []
    more += ["hydra.mode=RUN"] if composed.multirun else []  # the job's own command is one run
    points = [(point.overrides, point.config) for point in grid.points]
    command = ["train", *(word for word in argv if word != "--dry-run")]
    entries = place.enter(id, name, command, more, grid.axes, grid.fixed, points)
    if launch["scheduler"] == "slurm":
        from runner.launching import slurm

        return slurm.submit(place, entries, launch, dry_run=request.dry_run, notice=notice)
    return run_here(place, entries, notice=notice)


def go_on(place: SweepDirectory) -> int:
    """Run what is not completed of a sweep, with what its jobs were frozen with; where it was run before."""
    from runner.launching import slurm, slurm_queue

    entries = place.entries()
    if not entries:
        raise UserError(f"the sweep in '{place.path}' has no jobs", "", f"runner status {place.path}")
    if slurm_queue.submissions(place):
        return slurm.submit(place, entries, place.config(entries[0])["launch"])
    return run_here(place, entries)


def run_here(place: SweepDirectory, entries: Sequence[Entry], *, notice: str = "") -> int:
    """Run the jobs that are not completed on this machine; says what there is to do, and how it went."""
    from runner.launching import schedule
    from runner.launching.board import make_board

    info = place.info()
    todo = [entry for entry in entries if place.state(entry) != "COMPLETED"]
    varied = {entry.number: " ".join(_varied(entry, info)) for entry in entries}
    _open(place, info, entries, todo)
    if not todo:
        _close(place, entries)
        return EXIT_DONE
    jobs = [schedule.SweepJob(place, e, place.config(e), ["train", *e.overrides, *info["arguments"]]) for e in todo]
    wanted = schedule.collect_needs([(job, job.config) for job in jobs], ["train", *info["fixed"], *info["arguments"]])
    place.add_needs([(w.need.role, w.need.tasks, w.need.signature, w.need.config) for w in wanted])
    launch = _common_launch([job.config for job in jobs])
    if notice:
        print(notice)
    if wanted:
        _tell_needs(wanted)
    sys.stdout.flush()
    board = make_board(varied)
    try:
        with place.attending():
            outcome = schedule.run_sweep(
                jobs,
                wanted,
                board,
                at_a_time=launch["jobs"],
                gpus_per_job=launch["gpus_per_job"],
                keep_going=launch["keep_going"],
            )
    finally:
        board.close()
    return _report(place, entries, varied, outcome)


def _report(place: SweepDirectory, entries: Sequence[Entry], varied: dict[int, str], outcome: Any) -> int:
    sys.stdout.flush()
    failed = [job for job in outcome.jobs if job.state == "FAILED"]
    lost = [job for job in outcome.needs if job.state == "FAILED"]
    if lost:
        print(f"\n{len(lost)} of {len(outcome.needs)} needed runs failed:", file=sys.stderr)
        for job in lost:
            print(f"  {job.label}\n    {job.message}\n    see: {_log(job.path)}", file=sys.stderr)
    if failed:
        print(f"\n{len(failed)} of {len(entries)} jobs failed:", file=sys.stderr)
        for job in failed:
            print(
                f"  {job.label}: {varied[job.entry.number]}\n    {job.message}\n    see: {_log(job.path)}",
                file=sys.stderr,
            )
    if outcome.code == EXIT_STOPPED:
        done = sum(place.state(entry) == "COMPLETED" for entry in entries)
        print(f"\nstopped; {done} of {len(entries)} jobs are completed", file=sys.stderr)
        print(f"  see: runner resume {_shown(place.path)}", file=sys.stderr)
        return EXIT_STOPPED
    if outcome.code == EXIT_FAILED:
        print(
            f"\nrunning the same command again, or `runner resume {_shown(place.path)}`, tries them again",
            file=sys.stderr,
        )
        return EXIT_FAILED
    _close(place, entries)
    return EXIT_DONE


def _open(place: SweepDirectory, info: dict[str, Any], entries: Sequence[Entry], todo: Sequence[Entry]) -> None:
    done = len(entries) - len(todo)
    axes = " × ".join(f"{len(values)} {key.lstrip('+')}" for key, values in info["axes"].items())
    counts = f"{len(entries)} jobs{f' ({axes})' if axes else ''}"
    if done:
        counts += f", {done} completed before, {len(todo)} to run"
    print(f"sweep {info['id']}: {counts}\n  directory {_shown(place.path)}", flush=True)


def _close(place: SweepDirectory, entries: Sequence[Entry]) -> None:
    print(f"\nall {len(entries)} jobs are done")
    offline = [e for e in entries if any((place.directory(e) / "wandb").glob("offline-run-*"))]
    if offline:
        print(f"  W&B      runner sync {_shown(place.path)}")
    print(f"  next     runner report {_shown(place.path)}")


def _tell_needs(wanted: Sequence[Any]) -> None:
    from runner.launching.needs import find

    missing = [job for job in wanted if find(job.need) is None]
    counts = Counter(job.need.role for job in wanted)
    roles = ", ".join(f"{count} {role}{'' if count == 1 else 's'}" for role, count in counts.items())
    print(f"  needed    {roles}: {f'{len(missing)} to train first' if missing else 'all are there'}")


def _baseline_by_default(grid: Grid) -> str:
    """In a comparison of methods, `baseline` is auto unless something was said; returns what to tell."""
    if not grid.compares:
        return ""
    changed = 0
    for point in grid.points:
        if point.config["baseline"] is None and len(point.config["mixture"]["tasks"]) > 1:
            point.config["baseline"] = "auto"
            changed += 1
    if not changed:
        return ""
    compared = ", ".join(key.lstrip("+") for key in grid.axes if key.lstrip("+").partition("@")[0] in COMPARISONS)
    return (
        f"  baseline  auto, because {compared} is compared: Δm needs single-task runs (baseline=none leaves them out)"
    )


def _common_launch(configs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The settings of the whole sweep, which the jobs must agree on.

    Raises:
        UserError: they do not, or a run's directory is pinned for all.
    """
    problems = []
    for key in ("scheduler", "jobs", "gpus_per_job", "keep_going", "slurm"):
        if any(config["launch"][key] != configs[0]["launch"][key] for config in configs):
            problems.append(Problem(f"launch.{key} is about the whole sweep, so it cannot differ between its jobs"))
    for key in ("output_dir", "sweep_dir"):
        if any(config[key] != configs[0][key] for config in configs):
            problems.append(Problem(f"{key} is about the whole sweep, so it cannot differ between its jobs"))
    refuse(problems)
    return dict(configs[0]["launch"])


def _dry(grid: Grid) -> int:
    """Show the jobs of a sweep, and what the first one would run."""
    from runner.launching import front

    print(f"{len(grid.points)} jobs:")
    for number, point in list(enumerate(grid.points))[:FIRST_LINES]:
        print(f"  {number:>3} {signature(point.config)}  {' '.join(point.varied)}")
    if len(grid.points) > FIRST_LINES:
        print(f"  … {len(grid.points) - FIRST_LINES} more")
    print("\nthe first job:", flush=True)
    return front.dry_run(grid.points[0].config)


def _progress(total: int) -> Callable[[int], None]:
    """Tell how far checking is, where it takes long enough to wonder."""
    began = time.monotonic()
    told = [began]

    def tell(done: int) -> None:
        if time.monotonic() - told[0] > 3.0 and done < total:
            told[0] = time.monotonic()
            print(f"checked {done} of {total} jobs", flush=True)

    return tell


def _varied(entry: Entry, info: dict[str, Any]) -> list[str]:
    keys = tuple(f"{key.lstrip('+')}=" for key in info["axes"])
    return [line for line in entry.overrides if line.lstrip("+").startswith(keys)] or entry.overrides


def _shown(path: Path) -> str:
    from runner.tracking.table import shell_path

    return shell_path(path)


def _log(run: Path) -> str:
    return _shown(next((run / name for name in ("train.log", "console.log") if (run / name).is_file()), run))
