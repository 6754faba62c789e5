"""`runner validate`: compose and check, run nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runner.cli.arguments import split_hydra
from runner.errors import EXIT_DONE, EXIT_USER, Problem, UserError

HELP = """\
usage: runner validate [OVERRIDES…] [--all] [--config-dir DIR]

Composes a configuration, checks every key and value and the data, and runs nothing. Torch is not
imported: it answers at once. With -m every job of the sweep is checked.

  --all              every option of every group, and every experiment, shipped and your own;
                     overrides such as plugins=[mine] hold for each
  --config-dir DIR   your own config folder

examples:
  runner validate +experiment=demo optimizer.lr=0.01
  runner validate -m +experiment=demo weighting=equal,pcgrad
  runner validate --all --config-dir my
"""


def run(arguments: Sequence[str]) -> int:
    """Run the verb."""
    words = [w for w in arguments if w != "--all"]
    request = split_hydra(words, "validate")
    if request.flags:
        raise UserError(f"runner validate does not take {request.flags[0]}", "", "runner validate --help")
    from runner.config import conformance
    from runner.config.compose import compose
    from runner.config.freeze import finalize
    from runner.config.grid import check, expand

    name = request.config_name or "train"
    if len(words) < len(arguments):
        return _all(conformance.validate_all(request.config_dir, request.overrides))
    composed = compose(name, request.overrides, request.config_dir, multirun=request.multirun)
    if composed.problems:
        raise UserError(composed.problems)
    many = request.multirun or composed.multirun
    if not many:
        print(_valid(finalize(compose(name, request.overrides, request.config_dir))))
        return EXIT_DONE
    grid = expand(composed)
    check(grid, request.config_dir)
    for point in grid.points:
        print(f"{_valid(point.config)}   {' '.join(point.overrides)}")
    return EXIT_DONE


def _valid(config: dict[str, Any]) -> str:
    from runner.config.signature import signature

    return f"valid: {config['name']}, signature {signature(config)}, tasks {', '.join(config['mixture']['tasks'])}"


def _all(results: dict[str, list[Problem]]) -> int:
    wrong = {key: problems for key, problems in results.items() if problems}
    for key, problems in wrong.items():
        print(f"{key}:")
        for problem in problems:
            print("  " + str(problem).replace("\n", "\n  "))
    experiments = sum(key.startswith("experiment/") for key in results)
    if wrong:
        print(f"{len(wrong)} of {len(results)} are not valid")
        return EXIT_USER
    print(f"{len(results) - experiments} options and {experiments} experiments are valid")
    return EXIT_DONE
