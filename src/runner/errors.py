"""The errors a person sees: what is wrong and where, what was probably meant, what to run next."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

EXIT_DONE, EXIT_FAILED, EXIT_USER, EXIT_STOPPED = 0, 1, 2, 75
"""Exit codes: done, the run failed, the user's input is wrong, stopped early and resumable."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with the user's input.

    Attributes:
        what: the problem and where it is, one sentence without a final full stop.
        hint: what was probably meant, or what to do (may be empty).
        see: a command that helps (may be empty).
    """

    what: str
    hint: str = ""
    see: str = ""

    def __str__(self) -> str:
        lines = [f"error: {self.what}"]
        if self.hint:
            lines.append(f"  {self.hint}")
        if self.see:
            lines.append(f"  see: {self.see}")
        return "\n".join(lines)


class UserError(Exception):
    """The user's input is wrong: exit 2, every problem printed, no traceback."""

    exit_code = EXIT_USER

    def __init__(self, problems: Problem | str | Sequence[Problem], hint: str = "", see: str = "") -> None:
        if isinstance(problems, str):
            problems = Problem(problems, hint, see)
        self.problems = [problems] if isinstance(problems, Problem) else list(problems)
        super().__init__("\n".join(map(str, self.problems)))

    def __reduce__(self) -> tuple:  # exceptions cross process borders in DataLoader workers
        return type(self), (self.problems,)


class RunFailed(UserError):
    """The input was right but the run could not finish: exit 1, same three lines."""

    exit_code = EXIT_FAILED


def first_line(error: BaseException, otherwise: str | None = None) -> str:
    """The first line of what an error of a library says; `otherwise`, or the error's type, where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__ if otherwise is None else otherwise


def crashed(error: Exception) -> int:
    """What a process that works for the front end says of an error that nobody foresaw; its exit code.

    Raises:
        Exception: the error itself, where RUNNER_DEBUG=1.
    """
    if os.environ.get("RUNNER_DEBUG") == "1":
        raise error
    print(
        f"error: {type(error).__name__}: {error}\n  RUNNER_DEBUG=1 shows the traceback\n  see: runner doctor",
        file=sys.stderr,
    )
    return EXIT_FAILED


def suggest(word: str, valid: Iterable[str], limit: int = 12) -> str:
    """`did you mean 'lr'?   valid: lr, weight_decay` for a mistyped word; without a close match only the valid ones."""
    choices = sorted(map(str, valid))
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    shown = ", ".join(choices[:limit]) + (f", … ({len(choices)} in all)" if len(choices) > limit else "")
    listed = f"valid: {shown}" if choices else "nothing is valid here"
    return f"did you mean '{close[0]}'?   {listed}" if close else listed
