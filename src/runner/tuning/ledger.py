"""What the study knows of trials: every state and attribute of one is written here, and told to a person.

A trial is RUNNING in the journal until nothing more will happen to it. One whose run failed stays so, too, while it
may be tried again: Optuna has no way back from an end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from runner.config.schema import TuneConfig
from runner.files import read_json
from runner.launching.rundir import RunDirectory
from runner.tuning.objective import Objective
from runner.tuning.watch import Watcher

ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


class Ledger:
    """Optuna's side of a search.

    Args:
        study: of a directory that this process holds.
        objective, settings: what was asked for.
        tell: prints a line.
    """

    def __init__(
        self, study: optuna.Study, objective: Objective, settings: TuneConfig, tell: Callable[[str], None]
    ) -> None:
        self.study, self.objective, self.settings, self.tell = study, objective, settings, tell
        if "objective" in study.user_attrs:
            objective.restore(study.user_attrs["objective"])

    def trials(self) -> list[FrozenTrial]:
        """All trials, oldest first."""
        return self.study.get_trials(deepcopy=False)

    def frozen(self, number: int) -> FrozenTrial:
        """A trial as it is now."""
        return self.trials()[number]

    def handle(self, trial: FrozenTrial) -> Trial:
        """A live trial, also of an earlier process."""
        return Trial(self.study, trial._trial_id)

    def note(self, trial: FrozenTrial, **values: Any) -> None:
        """Write attributes of a trial."""
        handle = self.handle(trial)
        for key, value in values.items():
            handle.set_user_attr(key, value)

    # ---- while it runs -------------------------------------------------------------------------------------------

    def report(self, trial: FrozenTrial, watcher: Watcher, ended: bool = False) -> Trial:
        """Hand evaluations that are new to Optuna."""
        handle = self.handle(trial)
        if self.objective.count == 1:
            reported = self.frozen(trial.number).intermediate_values
            for step, metrics in watcher.new(ended):
                values = self.objective.minimised(metrics)
                if values is not None and step not in reported:
                    handle.report(values[0], step)
        return handle

    # ---- how it ends ---------------------------------------------------------------------------------------------

    def complete(self, trial: FrozenTrial, path: Path, watcher: Watcher) -> str:
        """The run has ended well; returns why the trial is of no use all the same, else an empty string."""
        result = read_json(path / "result.json")
        if self.objective.learn(result):
            self.study.set_user_attr("objective", self.objective.state())
        metrics = result["validation"]
        self.note(trial, metrics=metrics)
        values = self.objective.minimised(metrics)
        if values is None:
            return f"{' or '.join(self.objective.names)} is undefined on the validation split"
        if self.settings.pruner != "none":
            self.report(trial, watcher, ended=True)  # what later trials are compared with
        self.study.tell(trial.number, values)
        natural = self.objective.natural(metrics) or []
        shown = ", ".join(f"{n} {v:.5g}" for n, v in zip(self.objective.names, natural, strict=True))
        self.tell(f"trial {trial.number} done: {shown}{self._standing(trial)}")
        self._tell_repeats(trial)
        return ""

    def _standing(self, trial: FrozenTrial) -> str:
        best = [t.number for t in self.study.best_trials]
        if trial.number in best:
            return "   the best so far" if self.objective.count == 1 else "   on the front"
        return f"   best: trial {best[0]}" if self.objective.count == 1 else f"   front: {len(best)} trials"

    def prune(self, trial: FrozenTrial, path: Path, step: int) -> None:
        """The pruner gave up on it; its run says so, and can still be resumed by hand."""
        words = f"pruned by `runner tune` ({self.settings.pruner}) after its validation at step {step}"
        if (path / "run.json").exists():
            run = RunDirectory(path)
            attempts = run.info()["attempts"]
            if attempts:
                attempts[-1] |= {"message": words, "status": "STOPPED"}
            run.update(status="STOPPED", attempts=attempts, pruned={"step": step, "by": self.settings.pruner})
        self.note(trial, message=words)
        self.study.tell(trial.number, state=TrialState.PRUNED)
        self.tell(f"trial {trial.number} pruned at step {step}")
        self._tell_repeats(trial)

    def broke(self, trial: FrozenTrial, message: str) -> None:
        """Its run failed: left open for the next call, as often as tune.retries allows."""
        failures = int(self.frozen(trial.number).user_attrs.get("failures", 0)) + 1
        self.note(trial, failures=failures)
        if failures > self.settings.retries:
            self.fail(trial, message)
            return
        self.note(trial, message=message)
        self.tell(f"trial {trial.number} failed: {message} (the next call tries it again)")

    def fail(self, trial: FrozenTrial, message: str) -> None:
        """It has failed for good."""
        self.note(trial, message=message)
        self.study.tell(trial.number, state=TrialState.FAIL)
        self.tell(f"trial {trial.number} failed: {message}")
        self._tell_repeats(trial)

    # ---- repetitions ---------------------------------------------------------------------------------------------

    def repeat(self, trial: FrozenTrial, earlier: FrozenTrial, overrides: list[str]) -> None:
        """A configuration that was tried before is answered from its result, now or once that is there."""
        first = earlier.user_attrs.get("same_as")
        number = earlier.number if first is None else first
        source = self.frozen(number)
        self.note(trial, overrides=overrides, same_as=number)
        if source.state not in ENDED:
            return  # told together with the trial that it repeats
        self._echo(trial, source)

    def _echo(self, trial: FrozenTrial, source: FrozenTrial) -> None:
        values = source.values if source.state == TrialState.COMPLETE else None
        if "metrics" in source.user_attrs:
            self.note(trial, metrics=source.user_attrs["metrics"])
        if source.state == TrialState.PRUNED:
            for step, value in source.intermediate_values.items():
                self.handle(trial).report(value, step)
        self.study.tell(trial.number, values, state=source.state)

    def _tell_repeats(self, source: FrozenTrial) -> None:
        for trial in self.trials():
            if trial.state == TrialState.RUNNING and trial.user_attrs.get("same_as") == source.number:
                self._echo(trial, self.frozen(source.number))


def failed(trial: FrozenTrial) -> bool:
    """Whether its run has failed and nothing is being done about it: for good, or until the next call."""
    broken = trial.state == TrialState.RUNNING and bool(trial.user_attrs.get("message"))
    return trial.state == TrialState.FAIL or broken


def metrics_of(trial: FrozenTrial) -> Mapping[str, Mapping[str, float | None]]:
    """The validation metrics of a completed trial."""
    return trial.user_attrs.get("metrics") or {}
