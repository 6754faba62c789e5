"""`runner merge`: checkpoints from anywhere into one model, streaming."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from runner.cli.arguments import HydraArguments, split_hydra
from runner.errors import EXIT_FAILED, EXIT_STOPPED, UserError

HELP = """\
usage: runner merge merge=STRATEGY [base=DIR] 'models=[DIR,DIR,…]' out=DIR [OVERRIDES…]

Merges models tensor by tensor: memory does not grow with their size. Killed, it can go on.
DIR: safetensors or torch files, PEFT adapters (with base=DIR), runs of ours, DIR@TASK of a merge.

  --dry-run            print tensors, bytes, time and memory; write nothing
  --from FILE          read a mergekit YAML; overrides come on top
  merge.weights=[…]    one coefficient per model; by pattern: 'merge.layers={*.attn.*: 0.5}'
  include=[…] exclude=[…]   patterns of tensors to merge, or to copy from the base
  dtype=bfloat16       store so; default: as the base. Everything is computed in float32
  embed=union          vocabularies of different size: error, base or union
  --cfg job, --config-dir DIR, …: as Hydra has them; `runner show merge` lists all keys

examples:
  runner merge merge=ties base=gpt2 'models=[cars,digits]' out=merged
  runner merge merge=average 'models=[a,b,c]' out=soup --dry-run
  runner merge --from mergekit.yml out=merged

exit codes: 0 done, 1 the merge failed, 2 the command is wrong, 75 stopped early and resumable
"""


def run(arguments: Sequence[str]) -> int:
    """Run the verb."""
    words, dry, recipe = _own_flags(list(arguments))
    request = split_hydra(words, "merge")
    if request.multirun:
        raise UserError("runner merge makes one model at a time, without -m", see="runner merge --help")
    child = None if request.flags else start(dry)
    try:
        return _run(request, recipe, child)
    finally:
        if child is not None and child.poll() is None:  # something in the command is wrong
            child.kill()
            child.wait()


def _run(request: HydraArguments, recipe: str | None, child: subprocess.Popen[bytes] | None) -> int:
    from runner.cli import sweep
    from runner.config.compose import compose
    from runner.config.freeze import finalize_merge

    if recipe is not None:
        from runner.cli.mergekit import overrides_from

        request.overrides = [*overrides_from(recipe), *request.overrides]
    name = request.config_name or "merge"
    composed = compose(name, request.overrides, request.config_dir)
    if request.flags:
        sweep.refuse(composed.problems)
        sweep.check_package(composed, request.flags)
        return sweep.hydra_answers(name, composed.overrides, request)
    return work(finalize_merge(composed), child)


def _own_flags(words: list[str]) -> tuple[list[str], bool, str | None]:
    """Take --dry-run and --from FILE out."""
    rest, dry, recipe = [], False, None
    while words:
        word = words.pop(0)
        if word == "--dry-run":
            dry = True
        elif word == "--from" or word.startswith("--from="):
            _, equals, value = word.partition("=")
            if not equals and (not words or words[0].startswith("-") or "=" in words[0]):
                raise UserError("--from needs a file", "--from mergekit.yml", "runner merge --help")
            recipe = value if equals else words.pop(0)
        else:
            rest.append(word)
    return rest, dry, recipe


def start(dry: bool) -> subprocess.Popen[bytes] | None:
    """The worker: it imports torch while the command is still being checked, then waits for its configuration."""
    command = [sys.executable, "-m", "runner.merging.worker", *(["--dry-run"] if dry else [])]
    environment = dict(os.environ) | {"OMP_NUM_THREADS": "1"}  # pieces are worked on side by side instead
    return subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, start_new_session=True)


def work(config: dict[str, Any], child: subprocess.Popen[bytes] | None) -> int:
    """Hand a checked configuration to the worker and wait for it; a stop signal reaches it, and it says so."""
    assert child is not None
    signals = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, lambda n, _: child.send_signal(n)) for number in signals}
    try:
        child.communicate(json.dumps(config).encode())
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if child.returncode < 0:
        name = signal.Signals(-child.returncode).name
        why = {"SIGBUS": "an input became shorter while it was read", "SIGKILL": "memory may have run out"}.get(name)
        what = f"error: the merge ended without a word (signal {name}{f': {why}' if why else ''})"
        print(f"{what}\n  the same command goes on: files that are whole are kept", file=sys.stderr)
        return EXIT_FAILED
    return child.returncode if child.returncode in (0, 1, 2, EXIT_STOPPED) else EXIT_FAILED
