"""Weights & Biases: offline unless told otherwise, never asks for a key, never takes a run down."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec

from runner.errors import EXIT_STOPPED
from runner.tracking.panels import Panel, text_rows
from runner.tracking.table import shell_path

log = logging.getLogger("runner")
P = ParamSpec("P")

INIT_TIMEOUT_S = 30
FINISH_TIMEOUT_S = 300
FLUSH_S = 2.0  # W&B's own 15 s would be lost at every kill


def never_fatal(method: Callable[P, None]) -> Callable[P, None]:
    """Turn any exception of a `WandbSink` method into one notice and the end of that sink."""

    @functools.wraps(method)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        sink = args[0]
        assert isinstance(sink, WandbSink)
        if sink.run is None or sink.broken:
            return
        try:
            method(*args, **kwargs)
        except Exception as error:  # whatever it is, the run is worth more than its curves
            sink.broken = True
            log.warning("W&B failed", exc_info=error)
            sink.notice(f"W&B stopped recording ({_brief(error)}); the run goes on, metrics.jsonl has everything")

    return guarded


class WandbSink:
    """One attempt at a run as W&B sees it: every attempt has the same id and continues the same run.

    Args:
        settings: `tracking.wandb`: mode, project, entity, tags, notes. Its mode wins over the environment.
        run_dir: W&B's files go to `run_dir/wandb`.
        run_id: the same for every attempt. group, job_type: how W&B sorts runs.
        config: what W&B shows as the run's configuration.
        notice: called with a sentence for the person when something does not work.

    Attributes:
        run: W&B's run object, None where there is none. broken: whether recording was given up.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        *,
        run_dir: Path,
        run_id: str,
        group: str | None,
        job_type: str,
        config: Mapping[str, Any],
        notice: Callable[[str], None],
    ) -> None:
        self.run: Any = None
        self.broken = False
        self.notice = notice
        self._run_dir = run_dir
        self._step = self._row = 0
        mode = settings["mode"]
        if mode == "disabled":
            return
        if importlib.util.find_spec("wandb") is None:
            notice("the package wandb is not installed: metrics.jsonl only (pip install wandb, or tracking=jsonl)")
            return
        # Read once, when W&B is first used, and not only by wandb.init: the configuration wins over the environment.
        os.environ |= {"WANDB_MODE": mode, "WANDB_SILENT": "true"}
        start = functools.partial(
            _init,
            project=settings["project"],
            entity=settings["entity"],
            tags=list(settings["tags"] or ()),
            notes=settings["notes"],
            dir=str(run_dir),
            id=run_id,
            name=run_dir.name,
            group=group,
            job_type=job_type,
            config=dict(config),
        )
        try:
            if mode == "online" and not has_key():
                notice("W&B has no API key here: recording offline (`wandb login`, or set WANDB_API_KEY)")
                mode = "offline"
            if mode == "online":
                try:
                    self.run = start(mode="online")
                except Exception as error:
                    log.warning("W&B failed to start online", exc_info=error)
                    notice(f"W&B cannot be reached: recording offline ({_brief(error)})")
                    mode = "offline"
                    _end_service()  # it still holds the id of the run that could not start
            if mode == "offline":
                self.run = start(mode="offline")
        except Exception as error:
            log.warning("W&B failed to start", exc_info=error)
            notice(f"W&B does not start ({_brief(error)}): metrics.jsonl only")
            return
        self._define_axes()

    @never_fatal
    def _define_axes(self) -> None:
        self.run.define_metric("step", hidden=True)
        self.run.define_metric("*", step_metric="step")

    @never_fatal
    def scalars(self, step: int, split: str, values: Mapping[str, Mapping[str, float]]) -> None:
        """Curves named `train/segmentation/loss`, or `train/lr` for what belongs to no task."""
        self._log(
            step,
            {
                "/".join(filter(None, (split, task, metric))): float(value)
                for task, metrics in values.items()
                for metric, value in metrics.items()
            },
        )

    @never_fatal
    def panels(
        self, step: int, split: str, panels: Sequence[Panel], image: Path | None, strips: Mapping[str, Path]
    ) -> None:
        """The sheet of pictures as an image, with the strips (task → file); examples in words as a table."""
        import wandb

        media: dict[str, Any] = {}
        if image is not None:
            media[f"{split}/panels"] = wandb.Image(str(image), caption=f"step {step}")
        media |= {f"{split}/strip_{task}": wandb.Image(str(path)) for task, path in strips.items()}
        rows = text_rows(panels)
        if rows:
            media[f"{split}/examples"] = wandb.Table(
                columns=["example", "input", "task", "target", "prediction"], data=[list(row) for row in rows]
            )
        self._log(step, media)

    @never_fatal
    def plots(self, paths: Sequence[Path]) -> None:
        """Pictures of the whole run, as `plots/<name>`, beside the last row."""
        import wandb

        if paths:
            self._log(self._step, {f"plots/{path.stem}": wandb.Image(str(path)) for path in paths})

    @never_fatal
    def pictures(self, step: int, files: Mapping[str, Path]) -> None:
        """Pictures that lie in the run's folder, by name."""
        import wandb

        self._log(step, {name: wandb.Image(str(path), caption=path.stem) for name, path in files.items()})

    @never_fatal
    def summary(self, result: Mapping[str, Any]) -> None:
        """The final numbers, as `result/<task>/<metric>` and `result/<key>`."""
        flat = {f"result/{key}": value for key, value in result.items() if isinstance(value, (int, float, str))}
        for task, metrics in result["tasks"].items():
            flat |= {f"result/{task}/{metric}": value for metric, value in metrics.items()}
        self.run.summary.update(flat)

    def close(self, exit_code: int) -> str:
        """Finish W&B's run as finished, preempted or failed; returns the command that uploads it, or ""."""
        if self.run is None:
            return ""
        offline = self.run.settings.mode == "offline"
        self.broken = False  # what was recorded before a failure is still worth keeping
        self._finish(exit_code)
        self.run = None
        folder = self._run_dir / "wandb"
        segments = sorted(folder.glob("offline-run-*")) if offline else []
        if len(segments) > 1:  # one per attempt; `wandb sync` takes them in the order of their start
            return f"wandb sync {shell_path(folder)}/offline-run-*"
        return f"wandb sync {shell_path(segments[0])}" if segments else ""

    @never_fatal
    def _finish(self, exit_code: int) -> None:
        if exit_code == EXIT_STOPPED:
            self.run.mark_preempting()  # shown as preempted, not as failed
        self.run.finish(exit_code=exit_code)
        _end_service()

    def _log(self, step: int, values: Mapping[str, Any]) -> None:
        # W&B drops rows whose step goes back, as in a final report on an earlier, best checkpoint: such a row goes to
        # the end. The curves are drawn over the key "step", which is always the true one.
        if step != self._step:
            self._row = step if step > self._row else self._row + 1
            self._step = step
        self.run.log({**values, "step": step}, step=self._row)


def _init(**arguments: Any) -> Any:
    import wandb

    options: dict[str, Any] = {
        "silent": True,
        "console": "off",
        "init_timeout": INIT_TIMEOUT_S,
        "finish_timeout": FINISH_TIMEOUT_S,
        "x_transaction_log_flush_interval": FLUSH_S,
    }
    known = wandb.Settings.model_fields
    return wandb.init(
        **arguments,
        resume="allow",
        reinit="finish_previous",
        save_code=False,
        settings=wandb.Settings(**{key: value for key, value in options.items() if key in known}),
    )


def has_key() -> bool:
    """Whether W&B finds credentials; never prompts, never uses the network."""
    import wandb

    return bool(wandb.login(prompt=False, verify=False))


def _end_service() -> None:
    """End W&B's helper process and wait until it has written everything: `finish` alone does not wait offline."""
    import wandb

    wandb.teardown()


def _brief(error: BaseException) -> str:
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text[:200]}"
