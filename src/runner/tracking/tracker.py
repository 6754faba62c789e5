"""One object that the loop tells what happened; it tells the sinks."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from runner.config.schema import section_defaults
from runner.errors import EXIT_DONE, EXIT_STOPPED
from runner.tracking.console import make_console
from runner.tracking.jsonl import MetricsFile, read_metrics
from runner.tracking.panels import Panel, write_panels
from runner.tracking.table import delta_lines, reference_lines, result_table, shell_path, summary_line
from runner.tracking.wandb_sink import WandbSink

log = logging.getLogger("runner")


class Described(Protocol):
    """What a result table needs to know of a task; `runner.tasks.base.Task` is one."""

    headline: str
    directions: Mapping[str, str]


class Tracker:
    """Scalars, pictures and messages of one attempt at a run. Lives in the main process only.

    `metrics.jsonl` is kept always, the console and W&B as `config["tracking"]` says. Only `metrics.jsonl` can fail the
    run; trouble with W&B or with a picture is reported once and the run goes on.

    Args:
        run_dir: the run's directory.
        config: the frozen configuration; missing keys of its `tracking` section have their defaults.
        attempt: number of this attempt, from 1.
        wandb_id: the run's id for W&B, the same for every attempt.
        resume_step: the step of the checkpoint this attempt continues from, 0 from the start.
        verb: what runs.
        role: what for, where another run needs it, such as "baseline". W&B's `job_type` is the role, else the verb.
        group: W&B's group, such as a sweep's id; default: the run's name.

    Raises:
        RunFailed: `metrics.jsonl` cannot be written.
    """

    def __init__(
        self,
        run_dir: Path,
        config: Mapping[str, Any],
        attempt: int,
        wandb_id: str,
        resume_step: int,
        *,
        verb: str = "train",
        group: str | None = None,
        role: str | None = None,
    ) -> None:
        self.run_dir = Path(run_dir)
        self.verb = verb
        settings = section_defaults("tracking") | dict(config.get("tracking") or {})
        self._notices: set[str] = set()
        self._console = make_console(settings["console"], settings["log_every"])
        self._metrics = MetricsFile(self.run_dir / "metrics.jsonl", attempt, resume_step)
        self._wandb = WandbSink(
            section_defaults("tracking")["wandb"] | dict(settings["wandb"]),
            run_dir=self.run_dir,
            run_id=wandb_id,
            group=group or config.get("name"),
            job_type=role or verb,
            config=config,
            notice=self.notice,
        )
        self._has_panels = self._has_plots = False
        self._plots = settings["plots"]
        self._closed = False

    def scalars(self, step: int, split: str, values: Mapping[str, Mapping[str, float]]) -> None:
        """Record numbers of a step.

        Args:
            step: the optimizer step they belong to.
            split: "train", "validation" or "test".
            values: task → metric → value; the task "" holds what belongs to no task.

        Raises:
            RunFailed: `metrics.jsonl` cannot be written.
        """
        self._metrics.append(step, split, values)
        self._wandb.scalars(step, split, values)
        if split == "validation":
            self._console.evaluation(step, split, values)

    def progress(
        self,
        step: int,
        total: int,
        losses: Mapping[str, float],
        lr: float,
        examples_per_s: float,
        eta_s: float,
    ) -> None:
        """Show how far training is; cheap enough for every step.

        Args:
            step, total: optimizer steps done, and in all.
            losses: task → loss; the total is what stands under "", or the sum.
            lr: learning rate of the first parameter group.
            examples_per_s: throughput. eta_s: estimated seconds to the end.
        """
        self._console.progress(step, total, losses, lr, examples_per_s, eta_s)

    def panels(self, step: int, split: str, panels: Sequence[Panel]) -> None:
        """Write prediction panels under `panels/` (pictures as one PNG, texts as one table) and to W&B.

        Those of the validation split also make strips: the same images at every evaluation.
        """
        if not panels:
            return
        try:
            written = write_panels(self.run_dir / "panels", f"{split}-step-{step:08d}", panels)
            strips = {}
            if split == "validation" and self.verb == "train" and any(panel.has_picture for panel in panels):
                from runner.tracking.strip import write_strips  # Pillow is needed for pictures only

                strips = write_strips(self.run_dir / "panels", step, panels)
        except OSError as error:  # a picture is not worth a run
            self.notice(f"prediction panels cannot be written: {error}")
            return
        self._has_panels = True
        self._wandb.panels(step, split, panels, written, strips)

    def plots(self) -> None:
        """Draw curves and maps of the whole run under `plots/` and hand them to W&B, if `tracking.plots`."""
        if not self._plots:
            return
        try:
            from runner.tracking.plots import write_plots  # matplotlib is needed here only

            written = write_plots(self.run_dir / "plots", read_metrics(self.run_dir / "metrics.jsonl"))
        except Exception as error:  # whatever it is, a picture is not worth a run
            log.warning("no plots", exc_info=error)
            self.notice(f"the plots cannot be drawn ({type(error).__name__}: {error}); metrics.jsonl has the numbers")
            return
        self._has_plots = bool(written)
        self._wandb.plots(written)

    def pictures(self, step: int, folder: Path) -> None:
        """Pictures in a folder of the run, to W&B as `<folder>/<file>`."""
        self._wandb.pictures(step, {f"{folder.name}/{path.stem}": path for path in sorted(folder.glob("*.png"))})

    def message(self, text: str) -> None:
        """Say something to the person who watches; it goes to the run's log too."""
        log.info("%s", text)
        self._console.message(text)

    def notice(self, text: str) -> None:
        """A warning, shown once however often it is raised, also on a quiet console."""
        if text not in self._notices:
            self._notices.add(text)
            log.warning("%s", text)
            self._console.notice(text)

    def table(self, result: Mapping[str, Any], tasks: Mapping[str, Described] | None = None) -> None:
        """Show a result as a table.

        Args:
            result: what goes into `result.json`: at least `split` and `tasks` (task → metric → value).
            tasks: gives each metric its arrow and names each task's headline metric.
        """
        described = tasks or {}
        self._console.end_progress()
        self._console.show(
            result_table(
                result["tasks"],
                split=result.get("split") or "",
                headlines={name: task.headline for name, task in described.items()},
                directions={name: task.directions for name, task in described.items()},
                ascii_only=self._console.ascii_only,
            )
        )
        for line in [*reference_lines(result), *delta_lines(result, self._console.ascii_only)]:
            self._console.text(line)
        self._console.text(summary_line(result))
        if result.get("hint"):
            self._console.text(f"  {result['hint']}")
        self._wandb.summary(result)

    def close(self, exit_code: int) -> None:
        """End every sink, then say where everything lies and what to do next. A second call does nothing.

        Args:
            exit_code: the run's, see `runner.errors`; W&B shows the run as finished, preempted or failed.

        Raises:
            RunFailed: the last rows of `metrics.jsonl` do not fit on the disk.
        """
        if self._closed:
            return
        self._closed = True
        self._console.end_progress()
        synced = self._wandb.close(exit_code)
        for name, text in self._last_lines(exit_code, synced):
            self._console.text(f"  {name:<8} {text}")
        self._metrics.close()

    def _last_lines(self, exit_code: int, synced: str) -> list[tuple[str, str]]:
        where = shell_path(self.run_dir)
        lines = [("run", where)]
        if exit_code == EXIT_DONE:
            lines[0] = ("result", shell_path(self.run_dir / "result.json"))
            if self._has_panels:
                lines.append(("panels", shell_path(self.run_dir / "panels")))
            if self._has_plots:
                lines.append(("plots", shell_path(self.run_dir / "plots")))
        if synced:
            lines.append(("W&B", synced))
        if exit_code == EXIT_STOPPED:
            lines.append(("next", f"runner resume {where}"))
        elif exit_code == EXIT_DONE and self.verb == "train":
            lines.append(("next", f"runner eval run={where}"))
        elif exit_code != EXIT_DONE:
            lines.append(("next", f"runner status {where}"))
        return lines
