"""Whether two results are the same: metric by metric, and what could explain that they are not. No torch here."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from runner.files import read_json

Verdict = Literal["exact", "close", "different", "missing"]
SPLITS = {"tasks": "", "validation": "validation"}
"""Part of a result.json → the split it is about; "" means the result's own `split`."""
SMALLEST = 1e-9
"""Differences below this are rounding, whatever the tolerance."""


@dataclass(frozen=True)
class Match:
    """One number on both sides.

    Attributes:
        split, task, metric: which.
        before, now: the values; None where it is undefined or not there.
        verdict: "exact" to the last bit, "close" within the tolerance, "different", or "missing" on one side.
    """

    split: str
    task: str
    metric: str
    before: float | None
    now: float | None
    verdict: Verdict

    @property
    def change(self) -> float | None:
        """`now` - `before`."""
        return None if self.before is None or self.now is None else self.now - self.before

    def as_json(self) -> dict[str, Any]:
        """For rerun.json."""
        return asdict(self)


def compare(before: Mapping[str, Any], now: Mapping[str, Any], tolerance: float) -> list[Match]:
    """Compare the metrics of two result.json.

    Args:
        before, now: their contents.
        tolerance: largest relative difference that is still "close".
    """
    a, b = dict(_numbers(before)), dict(_numbers(now))
    found = []
    for key in [*a, *(k for k in b if k not in a)]:
        both = key in a and key in b
        found.append(Match(*key, a.get(key), b.get(key), verdict(a[key], b[key], tolerance) if both else "missing"))
    return found


def _numbers(result: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str, str], float | None]]:
    for part, split in SPLITS.items():
        split = split or str(result.get("split", ""))
        if part == "validation" and result.get("split") == "validation":
            continue  # the same numbers a second time
        for task, metrics in (result.get(part) or {}).items():
            for metric, value in metrics.items():
                yield (split, task, metric), value


def verdict(before: float | None, now: float | None, tolerance: float) -> Verdict:
    """Of two values, of which None is "undefined"."""
    if before is None or now is None:
        return "exact" if before is now else "different"
    if before == now:
        return "exact"
    limit = max(tolerance * max(abs(before), abs(now)), SMALLEST if tolerance else 0.0)
    return "close" if math.isclose(before, now, rel_tol=0.0, abs_tol=limit) else "different"


def overall(matches: list[Match]) -> Verdict:
    """The worst of all."""
    order: tuple[Verdict, ...] = ("exact", "close", "different", "missing")
    return max((m.verdict for m in matches), key=order.index, default="missing")


def same_weights(before: Path, now: Path) -> bool | None:
    """Whether the best checkpoints of two runs hold the same bits, by their checksums; None where that is unknown."""
    sums = []
    for run in (before, now):
        try:
            listed = read_json(run / "checkpoints" / "best" / "DONE")
        except (OSError, ValueError):
            return None
        sums.append({name: entry for name, entry in listed.items() if name.endswith(".safetensors")})
    return sums[0] == sums[1]


def circumstances(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What differs between the circumstances of two runs: (what, before, now).

    Args:
        before, now: `{"info": run.json, "result": result.json}` of each.
    """
    a, b = dict(_circumstances(before)), dict(_circumstances(now))
    return [(key, a.get(key, "–"), b.get(key, "–")) for key in dict.fromkeys([*a, *b]) if a.get(key) != b.get(key)]


def _circumstances(run: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    info, result = run["info"], run["result"] or {}
    git = info.get("git") or {}
    if git:
        yield "git", str(git.get("sha", ""))[:12] + (" with changes" if git.get("dirty") else "")
    yield "python", str(info.get("python"))
    for name, version in (info.get("packages") or {}).items():
        yield name, str(version)
    for key in ("device", "processes"):
        if key in result:
            yield key, str(result[key])
    attempts = info.get("attempts") or []
    if attempts:
        yield "host", str(attempts[-1].get("host"))
    yield "signature", str(info.get("signature"))
