"""Pictures of a search: how it went, what mattered, what can be traded for what."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import optuna
from matplotlib.figure import Figure
from optuna.trial import FrozenTrial, TrialState

from runner.tuning.objective import Objective
from runner.tuning.summary import best_trials, own

BLUE, ORANGE, GREY = "#1f5fa8", "#d9730d", "#9a9a9a"


def write_plots(folder: Path, study: optuna.Study, objective: Objective, shares: dict[str, float]) -> list[Path]:
    """Write the pictures that there is something to show in; returns their paths."""
    trials = study.get_trials(deepcopy=False)
    if not own(trials):
        return []
    written = [_save(_history(trials, study, objective), folder / "history.png")]
    if shares:
        written.append(_save(_importance(shares), folder / "importance.png"))
    if objective.count > 1:
        written.append(_save(_front(study, objective), folder / "front.png"))
    return written


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=150)
    return path


def _history(trials: Sequence[FrozenTrial], study: optuna.Study, objective: Objective) -> Figure:
    """Each number over trials; with one number also the best so far, and which trials were pruned."""
    count = objective.count
    figure = Figure(figsize=(7, 0.8 + 2.6 * count), layout="constrained")
    signs = objective.signs()
    done = own(trials)
    front = {t.number for t in best_trials(study)}
    for k, axes in enumerate(figure.subplots(count, 1, squeeze=False, sharex=True)[:, 0]):
        values = [signs[k] * t.values[k] for t in done]
        axes.scatter([t.number for t in done], values, s=26, color=BLUE, label="trial", zorder=3)
        if count == 1:
            best: list[float] = []
            for trial in done:
                best.append(min(trial.values[0], best[-1] if best else trial.values[0]))
            numbers = [*(t.number for t in done), trials[-1].number]
            line = [signs[0] * v for v in (*best, best[-1])]
            axes.step(numbers, line, where="post", color=ORANGE, label="best so far")
            cut = [t.number for t in trials if t.state == TrialState.PRUNED]
            if cut:  # at the edge: what they had reached when they were stopped does not compare with final values
                edge = 0.96 if signs[0] > 0 else 0.04
                across = axes.get_xaxis_transform()
                axes.plot(cut, [edge] * len(cut), "x", color=GREY, transform=across, label="pruned", zorder=2)
        else:
            chosen = [(t.number, v) for t, v in zip(done, values, strict=True) if t.number in front]
            axes.scatter(*zip(*chosen, strict=True), s=70, facecolors="none", edgecolors=ORANGE, label="on the front")
        axes.set_ylabel(f"{objective.names[k]} {objective.arrows[k]}")
        axes.grid(alpha=0.25)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if k == 0:
            axes.legend(loc="best", fontsize=8)
    axes.set_xlabel("trial")
    return figure


def _importance(shares: dict[str, float]) -> Figure:
    names = list(shares)[::-1]
    figure = Figure(figsize=(7, 1.0 + 0.4 * len(names)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(names, [shares[name] for name in names], color=BLUE, height=0.6)
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axes.set_xlim(0, 1.08)
    axes.set_xlabel("share of the variation that it explains (PED-ANOVA)")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure


def _front(study: optuna.Study, objective: Objective) -> Figure:
    """A panel for every pair of numbers; the trials on the front are numbered."""
    pairs = list(combinations(range(objective.count), 2))
    columns = min(3, len(pairs))
    rows = -(-len(pairs) // columns)
    figure = Figure(figsize=(1.2 + 4.2 * columns, 0.6 + 3.6 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    signs = objective.signs()
    done = own(study.get_trials(deepcopy=False))
    front = {t.number for t in best_trials(study)}
    for panel, (i, j) in zip(panels, pairs, strict=False):
        points = [(t.number, signs[i] * t.values[i], signs[j] * t.values[j]) for t in done]
        others = [p for p in points if p[0] not in front]
        best = sorted((p for p in points if p[0] in front), key=lambda p: p[1])
        panel.scatter([p[1] for p in others], [p[2] for p in others], s=24, color=GREY, label="trial")
        style = "-" if objective.count == 2 else "none"  # projected, a front of more dimensions is no line
        panel.plot([p[1] for p in best], [p[2] for p in best], "o", ls=style, color=ORANGE, label="on the front")
        for number, x, y in best:
            panel.annotate(str(number), (x, y), textcoords="offset points", xytext=(5, 4), fontsize=8)
        panel.set_xlabel(f"{objective.names[i]} {objective.arrows[i]}")
        panel.set_ylabel(f"{objective.names[j]} {objective.arrows[j]}")
        panel.grid(alpha=0.25)
    panels[0].legend(loc="best", fontsize=8)
    for panel in panels[len(pairs) :]:
        panel.set_visible(False)
    return figure
