"""Which methods reach the Pareto front of the toy problem: a table and the picture of the Nash-MTL and FAMO papers.

    runner train -m +experiment=toy_pareto weighting=equal,mgda,pcgrad,cagrad,nash_mtl backbone.start=0,1,2,3,4
    python scripts/toy_pareto.py outputs --out toy_pareto.png

Reads the runs below a folder; of several runs of one weighting and start, the newest. A run has reached the front if
its last point is at most 2 % of the front's extent worse in the objective where it is worst, against the point of the
front that is best for it (the additive epsilon indicator).
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from runner.architectures.heads.toy_objective import objectives, pareto_set
from runner.backbones.toy_point import STARTS
from runner.files import read_json
from runner.tracking.jsonl import read_metrics

NEAR = 0.02
TARGET = "runner.mixtures.toy_pareto.ToyPareto"


@dataclass
class Path2D:
    """One run: its method, and where it went."""

    weighting: str
    start: str
    steps: np.ndarray
    points_N2: np.ndarray
    values_N2: np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the runs are, at any depth")
    parser.add_argument("--out", type=Path, default=Path("toy_pareto.png"))
    arguments = parser.parse_args()
    runs = find(arguments.folder)
    if not runs:
        raise SystemExit(f"no finished run of +experiment=toy_pareto below {arguments.folder}")
    scales = runs[0][1]
    front_N2 = front(scales)
    by_method: dict[str, list[Path2D]] = {}
    for path, _ in runs:
        by_method.setdefault(path.weighting, []).append(path)
    print(f"{'weighting':24} {'reached':>8}   gap to the front from each start (share of its extent)")
    for method, paths in by_method.items():
        gaps = [gap(path.values_N2[-1], front_N2) for path in paths]
        shown = "   ".join(f"{path.start}: {value:.3f}" for path, value in zip(paths, gaps, strict=True))
        print(f"{method:24} {sum(g <= NEAR for g in gaps)} of {len(gaps):>2}   {shown}")
    draw(by_method, front_N2, scales, arguments.out)
    print(f"picture  {arguments.out}")


def find(folder: Path) -> list[tuple[Path2D, np.ndarray]]:
    """Finished runs by method and start, with the scales of their objectives."""
    newest: dict[tuple[str, str], tuple[Path2D, np.ndarray]] = {}
    for info in sorted(folder.rglob("run.json"), key=lambda path: path.stat().st_mtime):
        config = yaml.safe_load((info.parent / "config.yaml").read_text())
        if read_json(info).get("status") == "COMPLETED" and config["mixture"].get("_target_") == TARGET:
            read = read_run(info.parent, config)
            scales = np.array([task["head"]["scale"] for task in config["mixture"]["tasks"].values()])
            newest[read.weighting, read.start] = read, scales
    return [newest[key] for key in sorted(newest)]


def read_run(run: Path, config: dict[str, Any]) -> Path2D:
    """The start, and the points at which the run was evaluated."""
    rows = [r for r in read_metrics(run / "metrics.jsonl") if r["split"] == "validation"]
    names = list(config["mixture"]["tasks"])
    steps = sorted({r["step"] for r in rows})
    table = {(r["step"], r["task"], r["metric"]): r["value"] for r in rows}
    points = np.array([[table[step, names[0], x] for x in ("x1", "x2")] for step in steps])
    values = np.array([[table[step, name, "value"] for name in names] for step in steps])
    start = config["backbone"]["start"]
    first = torch.tensor([STARTS[start] if isinstance(start, int) else start], dtype=torch.float64)
    scales = np.array([task["head"]["scale"] for task in config["mixture"]["tasks"].values()])
    points, values = np.vstack([first.numpy(), points]), np.vstack([objectives(first).numpy() * scales, values])
    wrapper = (config.get("wrapper") or {}).get("_target_")
    method = config["weighting"]["_target_"].rpartition(".")[2] + (
        f" + {wrapper.rpartition('.')[2]}" if wrapper else ""
    )
    return Path2D(method, str(start), np.array([0, *steps]), points, values)


def front(scales: np.ndarray) -> np.ndarray:
    """(N, 2) values on the Pareto front."""
    return objectives(pareto_set()).numpy() * scales


def gap(value_2: np.ndarray, front_N2: np.ndarray) -> float:
    """How much worse than the front, as a share of its extent; 0 on it."""
    extent = np.ptp(front_N2, axis=0)
    return float(np.maximum((value_2 - front_N2) / extent, 0).max(1).min())


def draw(by_method: dict[str, list[Path2D]], front_N2: np.ndarray, scales: np.ndarray, out: Path) -> None:
    """Two rows, objectives and weights; a column per method."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = len(by_method)
    figure = Figure(figsize=(3.4 * columns + 0.4, 6.8), layout="constrained")
    FigureCanvasAgg(figure)
    axis = np.linspace(-11, 11, 221)
    grid = torch.tensor(np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2))
    total = (objectives(grid).numpy() * scales).sum(1).reshape(len(axis), len(axis))
    for column, (method, paths) in enumerate(by_method.items(), start=1):
        above = figure.add_subplot(2, columns, column)
        above.plot(*front_N2.T, color="0.5", linewidth=6, alpha=0.6, solid_capstyle="round", label="Pareto front")
        below = figure.add_subplot(2, columns, columns + column)
        below.contour(axis, axis, total, levels=18, colors="0.8", linewidths=0.6)
        below.plot(*pareto_set().numpy().T, color="0.5", linewidth=6, alpha=0.6, solid_capstyle="round")
        for path in paths:
            for axes, way in ((above, path.values_N2), (below, path.points_N2)):
                axes.scatter(*way.T, c=np.arange(len(way)), cmap="plasma", s=5, linewidths=0, zorder=3)
                axes.scatter(*way[0], color="black", s=36, zorder=4)
                axes.scatter(*way[-1], color="#D55E00", marker="*", s=90, zorder=5, edgecolors="white", linewidths=0.6)
        reached = sum(gap(path.values_N2[-1], front_N2) <= NEAR for path in paths)
        above.set_title(f"{method}: {reached} of {len(paths)}", fontsize=11)
        for axes, names in ((above, ("first objective", "second objective")), (below, ("x1", "x2"))):
            axes.set_xlabel(names[0], fontsize=9)
            axes.set_ylabel(names[1] if column == 1 else "", fontsize=9)
            axes.tick_params(labelsize=8)
            axes.spines[["top", "right"]].set_visible(False)
        if column == 1:
            above.legend(frameon=False, fontsize=8, loc="center right")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main()
