"""What a search has found: sweep.json, tune.json, the tables at the end."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from runner.config.schema import TuneConfig
from runner.files import read_json, write_json
from runner.launching.rundir import now
from runner.tuning.ledger import failed, metrics_of
from runner.tuning.objective import Objective
from runner.tuning.space import Space

SHOWN = 10
"""Trials in the table at the end."""

LEAST = 4
"""Completed trials below which importances say nothing."""


def write_sweep(
    folder: Path,
    study: optuna.Study,
    space: Space,
    objective: Objective,
    settings: TuneConfig,
    argv: Sequence[str],
    name: str,
    needs: Sequence[Mapping[str, Any]] = (),
    arguments: Sequence[str] = (),
) -> None:
    """sweep.json: the trials as jobs; a trial that was answered from another one is no job.

    Args:
        folder, study, space, objective, settings: of the search.
        argv: the command that goes on with it.
        name: of the runs.
        needs: entries of the runs that trials have needed in this call; earlier ones are kept.
        arguments: what a trial's own command has behind its overrides.
    """
    path = folder / "sweep.json"
    before = read_json(path) if path.is_file() else {}
    known = {need["signature"]: need for need in (*before.get("needs", []), *needs)}
    needs = list(known.values())
    jobs = [
        {
            "number": trial.number,
            "overrides": trial.user_attrs["overrides"],
            "signature": trial.user_attrs["signature"],
            "directory": trial.user_attrs["directory"],
        }
        for trial in study.get_trials(deepcopy=False)
        if "directory" in trial.user_attrs
    ]
    sweep = {
        "schema": 1,
        "id": folder.name,
        "name": name,
        "created": before.get("created", now()),
        "argv": list(argv),
        "arguments": list(arguments),
        "verb": "tune",
        "axes": {axis.key: list(axis.choices) or [axis.spec] for axis in space.axes},
        "fixed": list(space.fixed),
        "tune": {k: v for k, v in asdict(settings).items() if k != "dir"} | {"objective": objective.names},
        "jobs": jobs,
        "needs": [dict(need) for need in needs],
    }
    if sweep != before:
        write_json(path, sweep)


def summarise(
    study: optuna.Study, objective: Objective, elapsed_s: float, shares: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """tune.json.

    Args:
        study, objective: of the search.
        elapsed_s: seconds spent on it.
        shares: importances, once the search has ended.
    """
    trials = study.get_trials(deepcopy=False)
    completed = [t for t in trials if t.state == TrialState.COMPLETE]
    return {
        "schema": 1,
        "objective": objective.names,
        "better": [{"↑": "higher", "↓": "lower"}.get(arrow, "") for arrow in objective.arrows],
        "elapsed_s": round(elapsed_s, 1),
        "best": [t.number for t in best_trials(study)] if completed else [],
        "importance": dict(shares or {}),
        "trials": [_trial(trial, objective) for trial in trials],
    }


def _trial(trial: FrozenTrial, objective: Objective) -> dict[str, Any]:
    attributes = trial.user_attrs
    signs = objective.signs() if objective.known else []
    done = trial.state == TrialState.COMPLETE
    return {
        "number": trial.number,
        "state": "FAIL" if failed(trial) else trial.state.name,
        "overrides": attributes.get("overrides"),
        "parameters": dict(trial.params),
        "values": [sign * v for sign, v in zip(signs, trial.values, strict=True)] if done else None,
        "metrics": attributes.get("metrics"),
        "directory": attributes.get("directory"),
        "signature": attributes.get("signature"),
        "same_as": attributes.get("same_as"),
        "message": attributes.get("message", ""),
        "failures": attributes.get("failures", 0),
        "evaluations": {
            str(step): signs[0] * value for step, value in sorted(trial.intermediate_values.items()) if signs
        },
    }


def own(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Completed trials with a run of their own."""
    return [t for t in trials if t.state == TrialState.COMPLETE and "directory" in t.user_attrs]


def best_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The best trial, or those on the Pareto front; of equal configurations the one that ran."""
    found = own(study.best_trials)
    return found[:1] if len(study.directions) == 1 else found


def importances(study: optuna.Study) -> dict[str, float]:
    """Parameter → share of the objective's variation that it explains (PED-ANOVA, Watanabe et al. 2023,
    arXiv 2304.10255), the largest first; empty where too few trials completed to tell.
    """
    trials = own(study.get_trials(deepcopy=False))
    if len(trials) < LEAST or len({tuple(t.values) for t in trials}) < 2:
        return {}
    from optuna.importance import get_param_importances  # slow to import: it looks for scikit-learn

    if len(study.directions) == 1:
        return dict(get_param_importances(study))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that low values count as good: they do, everything is minimised
        parts = [get_param_importances(study, target=lambda t, k=k: t.values[k]) for k in range(len(study.directions))]
    mean = {key: sum(part.get(key, 0.0) for part in parts) / len(parts) for key in parts[0]}
    return dict(sorted(mean.items(), key=lambda item: -item[1]))


def mean_ranks(trials: Sequence[FrozenTrial], objective: Objective) -> dict[int, float]:
    """Trial number → its rank, 1 the best, by each task's headline metric, averaged over tasks; ties share a rank."""
    ranks: dict[int, list[float]] = {t.number: [] for t in trials}
    for task, metric in objective.headline.items():
        sign = -1.0 if objective.directions[task].get(metric) == "up" else 1.0
        values = {t.number: metrics_of(t).get(task, {}).get(metric) for t in trials}
        known = {number: sign * value for number, value in values.items() if value is not None}
        for number, value in known.items():
            below = sum(v < value for v in known.values())
            ranks[number].append(1 + below + (sum(v == value for v in known.values()) - 1) / 2)
    return {number: sum(found) / len(found) for number, found in ranks.items() if found}


def table(study: optuna.Study, objective: Objective, space: Space) -> tuple[list[str], list[list[str]]]:
    """The best trials: headers and rows. With several numbers, those on the front come first."""
    trials = own(study.get_trials(deepcopy=False))
    front = [t.number for t in best_trials(study)]
    order = sorted(trials, key=lambda t: (t.number not in front, t.values[0], t.number))
    ranks = mean_ranks(trials, objective)
    signs = objective.signs()
    keys = [axis.key for axis in space.axes]
    others = [
        (task, metric) for task, metric in objective.headline.items() if f"{task}/{metric}" not in objective.names
    ]
    values = [f"{name} {arrow}" for name, arrow in zip(objective.names, objective.arrows, strict=True)]
    headers = ["trial", *values, *(f"{task}/{metric}" for task, metric in others), "mean rank", *keys]
    rows = []
    for trial in order[: max(SHOWN, len(front))]:
        texts = dict(line.split("=", 1) for line in trial.user_attrs["overrides"])
        rows.append(
            [
                f"{trial.number}{' *' if trial.number in front else ''}",
                *(f"{sign * v:.5g}" for sign, v in zip(signs, trial.values, strict=True)),
                *(_number(metrics_of(trial).get(task, {}).get(metric)) for task, metric in others),
                f"{ranks[trial.number]:.2f}" if trial.number in ranks else "",
                *(texts[key] for key in keys),
            ]
        )
    return headers, rows


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.5g}"


def command(words: Sequence[str]) -> str:
    """A command line that a shell takes."""
    return f"runner {shlex.join(words)}"


def counts(trials: Sequence[FrozenTrial]) -> str:
    """`12 completed, 3 pruned, 1 failed`."""
    names: Mapping[TrialState, str] = {
        TrialState.COMPLETE: "completed",
        TrialState.PRUNED: "pruned",
        TrialState.FAIL: "failed",
        TrialState.RUNNING: "unfinished",
    }
    ran = [t for t in trials if "same_as" not in t.user_attrs]
    states = [TrialState.FAIL if failed(t) else t.state for t in ran]
    parts = [f"{n} {word}" for state, word in names.items() if (n := states.count(state))]
    repeated = sum(t.user_attrs.get("same_as") is not None for t in trials)
    parts += [f"{repeated} answered from an earlier one"] if repeated else []
    return ", ".join(parts) or "none"
