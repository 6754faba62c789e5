"""`runner cp`: a copy of an option, to own and change."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from runner.cli.arguments import split_plain
from runner.config import paths
from runner.errors import EXIT_DONE, UserError

HELP = """\
usage: runner cp GROUP/OPTION DEST

Copies an option so that you can change it. DEST is your own config folder, and the copy lands in
DEST/GROUP/OPTION.yaml (DEST may end in GROUP); or it is a file, DIR/GROUP/NAME.yaml.
Nothing is overwritten.
Use the folder with --config-dir; an option of yours hides a shipped one of the same name.

examples:
  runner cp optimizer/adamw my
  runner cp experiment/demo my/experiment/first.yaml
  runner train --config-dir my +experiment=first
"""


def run(arguments: Sequence[str]) -> int:
    """Run the verb."""
    (key, destination), _ = split_plain(arguments, "cp", ["GROUP/OPTION", "DEST"])
    option = paths.find(key)
    target = Path(destination)
    if target.suffix in (".yaml", ".yml"):
        if target.suffix == ".yml" or target.parent.name != option.group:
            fitting = target.parent / option.group / f"{target.stem}.yaml"
            what = f"'{destination}' would not be found: an option is a .yaml file in a folder named after its group"
            raise UserError(what, f"did you mean 'runner cp {option.key} {fitting}'?", "runner cp --help")
        folder, name = target.parent.parent, target.stem
    else:
        folder, name = target.parent if target.name == option.group else target, option.name
        target = folder / option.group / f"{option.name}.yaml"
    if target.exists():
        raise UserError(f"'{target}' exists already", "nothing was copied; choose another name or move the file away")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("x", encoding="utf-8") as copy, option.path.open(encoding="utf-8") as source:
            shutil.copyfileobj(source, copy)
    except OSError as error:
        raise UserError(f"'{target}' cannot be written: {os.strerror(error.errno or 0)}") from error
    choice = f"+experiment={name}" if option.group == "experiment" else f"+experiment=demo {option.group}={name}"
    given = str(option.notes.get("run", ""))
    chosen = re.compile(rf"(?<![\w/]){option.group}={re.escape(option.name)}(?=\s|$)")
    if given.startswith("runner train ") and chosen.search(given):
        choice = chosen.sub(lambda _: f"{option.group}={name}", given.removeprefix("runner train "))
    print(f"copied {option.key} to {target}")
    print(f"  use it: runner train --config-dir {shlex.quote(str(folder))} {choice}")
    return EXIT_DONE
