"""`runner train`: compose, check, then one run or a sweep."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from runner.cli.arguments import split_hydra
from runner.cli.output import print_notes

HELP = """\
usage: runner train [OVERRIDES…] [--dry-run] [-m] [--config-dir DIR]

Trains one configuration in a directory of its own under outputs/train; ends with a result table.
Overrides choose an option of a group (weighting=pcgrad) or set a key (optimizer.lr=0.001).

  --dry-run          print the resolved configuration, the model and its memory; run nothing
  -m, --multirun     one job for every combination of values: seed=0,1,2 weighting=equal,pcgrad
                     in one directory under outputs/sweeps; the same command again, also with more
                     values, runs what is not completed. launch.jobs=2: two at a time; launch=slurm
  --config-dir DIR   look for options in your own folder first (see `runner cp --help`)
  --cfg job          print the composed configuration; --resolve fills in interpolations
  --info, --hydra-help, --config-name NAME, --package P: as Hydra has them

examples:
  runner train +experiment=demo
  runner train +experiment=demo weighting=pcgrad optimizer.lr=3e-4 seed=1
  runner train -m +experiment=demo weighting=equal,uncertainty,pcgrad seed=0,1,2 launch.jobs=2

exit codes: 0 done, 1 the run failed, 2 the command is wrong, 75 stopped early and resumable
"""


def run(arguments: Sequence[str]) -> int:
    """Run the verb."""
    request = split_hydra(arguments, "train")
    from runner.cli import sweep  # Hydra is imported from here on
    from runner.config.compose import compose
    from runner.config.freeze import finalize
    from runner.launching import front

    name = request.config_name or "train"
    if "--hydra-help" in request.flags:
        return sweep.hydra_answers(name, [], request)
    composed = compose(name, request.overrides, request.config_dir, multirun=request.multirun)
    if request.flags:
        sweep.refuse(composed.problems)
        sweep.check_package(composed, request.flags)
        return sweep.hydra_answers(name, composed.overrides, request)
    if request.multirun or composed.multirun or composed.config.launch.get("scheduler") == "slurm":
        return sweep.sweep(composed, request, arguments)
    config = finalize(composed, data=not request.dry_run)  # a dry run says what is missing and goes on
    print_notes(composed.notes)
    if request.dry_run:
        print_config(config)
        return front.dry_run(config)
    return front.train(config, ["train", *arguments])


def print_config(config: dict[str, Any]) -> None:
    """Print a resolved configuration as YAML."""
    import yaml

    sys.stdout.write(yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    sys.stdout.flush()
