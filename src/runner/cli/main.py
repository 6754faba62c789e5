"""The `runner` command: finds the verb, runs its module, turns what goes wrong into messages and exit codes.

Nothing heavy is imported here: no torch, and no Hydra before a verb needs it.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from runner.errors import EXIT_DONE, EXIT_FAILED, Problem, UserError, first_line, suggest

VERBS: dict[str, tuple[str, str]] = {
    "train": ("train", "train one configuration, or many with -m"),
    "eval": ("evaluate", "evaluate a checkpoint of a run"),
    "merge": ("merge", "merge checkpoints from anywhere into one model"),
    "tune": ("tune", "search hyperparameters, one run per trial"),
    "report": ("report", "compare runs: a table with seeds collapsed, and a page with curves"),
    "resume": ("resume", "go on with a run that was stopped or killed"),
    "status": ("status", "what runs there are and how far they are"),
    "cancel": ("cancel", "stop a sweep: here, or in Slurm's queue"),
    "diff": ("diff", "compare two runs or two options: configuration and metrics"),
    "rerun": ("rerun", "run a frozen configuration again and compare the numbers"),
    "predict": ("predict", "run a trained model on your own inputs"),
    "export": ("export", "write a run as a Hugging Face folder"),
    "sync": ("sync", "upload offline runs to W&B"),
    "ls": ("ls", "list groups and options"),
    "show": ("show", "print an option with its comments"),
    "cp": ("cp", "copy an option to make it your own"),
    "validate": ("validate", "check configurations without running them"),
    "data": ("data", "list, verify and prepare data sets"),
    "doctor": ("doctor", "check this machine: GPU, caches, data, W&B, Slurm"),
    "completion": ("completion", "print the completion script of a shell"),
}
"""Verb → its module in runner.cli, and one line for the help."""

EXAMPLES = """\
examples:
  runner train +experiment=demo
  runner train +experiment=demo weighting=pcgrad seed=1
  runner ls weighting
"""
EXIT_INTERRUPTED = 130
EXIT_PIPE = 141


def help_text() -> str:
    """What `runner --help` prints."""
    rows = "\n".join(f"  {verb:<11} {line}" for verb, (_, line) in VERBS.items())
    usage = "usage: runner VERB …          multi-task learning and model merging, from YAML to a result\n\n"
    return f"{usage}{rows}\n\n{EXAMPLES}`runner VERB --help` explains a verb.\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = os.environ.get("RUNNER_DEBUG") == "1"
    try:
        code = dispatch(arguments)
        sys.stdout.flush()
        return code
    except UserError as error:
        if debug:
            raise
        _flush()
        print_problems(error.problems)
        return error.exit_code
    except KeyboardInterrupt:
        if debug:
            raise
        print("\nerror: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `runner ls | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE
    except Exception as error:
        if debug:
            raise
        _flush()
        _unexpected(error)
        return EXIT_FAILED


def dispatch(arguments: list[str]) -> int:
    """Hand the arguments to their verb.

    Raises:
        UserError: no such verb.
    """
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        if arguments[:1] == ["help"] and len(arguments) > 1:
            return dispatch([arguments[1], "--help"])
        sys.stdout.write(help_text())
        return EXIT_DONE
    verb, rest = arguments[0], arguments[1:]
    if verb in ("-V", "--version"):
        from runner import __version__

        print(f"runner {__version__}")
        return EXIT_DONE
    if verb == "__complete":
        module = "completion"
    elif verb in VERBS:
        module = VERBS[verb][0]
    else:
        if "=" in verb:
            raise UserError(
                f"'{verb}' is not a verb", f"did you mean 'runner train {' '.join(arguments)}'?", "runner --help"
            )
        raise UserError(f"unknown verb '{verb}'", suggest(verb, VERBS), "runner --help")
    entry = importlib.import_module(f"runner.cli.{module}")
    if verb == "__complete":
        return int(entry.answer(rest))
    if any(word in ("-h", "--help") for word in rest):
        sys.stdout.write(entry.HELP)
        return EXIT_DONE
    return int(entry.run(rest))


def print_problems(problems: Sequence[Problem]) -> None:
    """Print errors to stderr, three lines each."""
    from runner.cli.output import paint

    for problem in problems:
        head, _, rest = str(problem).partition(":")
        print(f"{paint(head + ':', '1;31', sys.stderr)}{rest}", file=sys.stderr)


def _flush() -> None:
    """What was printed comes before the error, also where both go to one file."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _unexpected(error: Exception) -> None:
    """A mistake of ours: a short message, and the traceback where it can be sent from."""
    import tempfile
    import traceback

    trace = "".join(traceback.format_exception(error))
    what = f"unexpected {type(error).__name__}: {first_line(error, '')}"
    try:
        with tempfile.NamedTemporaryFile("w", prefix="runner-error-", suffix=".txt", delete=False) as file:
            file.write(trace)
        where = f"the traceback is in {file.name}"
    except OSError:
        where = "RUNNER_DEBUG=1 shows the traceback"
    print(f"error: {what}\n  this should not happen; {where}\n  see: runner doctor", file=sys.stderr)
