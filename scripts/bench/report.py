"""`runner report` over many runs: time, size of the page, first paint in a real browser.

    python scripts/bench/report.py                # 500 runs
    python scripts/bench/report.py --runs 2000

Bars: 500 runs in 5 s; a page of 3 MB without panels; first paint after 1 s; no message on the console. Each run holds
100 log points of four tasks with weights and gradient conflict, about 330 KB, as a real run of a gradient method does.
The time is that of a fresh process, the imports counted; the bar is held against the processor time, which other work
on the machine does not change. The files have just been written, so they are in memory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.reporting import chromium  # noqa: E402
from tests.reporting.synthetic import make_config, write_run  # noqa: E402

SECONDS, MEGABYTES, PAINT_S = 5.0, 3.0, 1.0
SEEDS = 5


def write(folder: Path, count: int) -> None:
    """Settings with five seeds each: learning rate and weight decay, ten weightings."""
    names = ("equal", "uncertainty", "dwa", "pcgrad", "cagrad", "nash_mtl", "famo", "mgda", "imtl", "fairgrad")
    for number in range(count):
        setting, seed = divmod(number, SEEDS)
        words = [f"weighting={names[setting % 10]}", f"optimizer.lr={0.0001 * (1 + setting // 10)}", f"seed={seed}"]
        name = f"20260101T{number:06}Z-{number:08x}-abcd"
        write_run(folder / name, make_config(words), words, gain=-0.001 * setting, rows=100, every=10)


def measure(folder: Path, page: Path) -> tuple[float, float]:
    """Seconds on the clock and of the processor."""
    command = [sys.executable, "-m", "runner", "report", str(folder), "--html", str(page)]
    before, began = os.times(), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - began, spent


def look(page: Path) -> tuple[float, list[str]] | None:
    """First paint in seconds and complaints; None without a browser."""
    program = chromium.find()
    if program is None:
        return None
    with chromium.Browser(program) as browser:
        browser.open(page)
        paints = json.loads(browser.value("JSON.stringify(performance.getEntriesByType('paint'))"))
        return next(p["startTime"] for p in paints if p["name"] == "first-contentful-paint") / 1000, browser.problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument(
        "--slack", type=float, default=1.0, help="times the bars of time, for a machine with other work"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder, page = Path(place) / "runs", Path(place) / "page.html"
        write(folder, options.runs)
        clock, spent = measure(folder, page)
        size = page.stat().st_size / 1e6
        found = look(page)
    good = spent <= SECONDS * options.slack and size <= MEGABYTES
    print(f"{options.runs} runs: {clock:.1f} s on the clock, {spent:.1f} s of processor (bar {SECONDS:g} s)")
    print(f"page: {size:.2f} MB (bar {MEGABYTES:g} MB)")
    if found is None:
        print("first paint: not measured, there is no chromium")
    else:
        print(f"first paint: {found[0]:.2f} s (bar {PAINT_S:g} s), messages on the console: {found[1] or 'none'}")
        good = good and found[0] <= PAINT_S * options.slack and not found[1]
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
