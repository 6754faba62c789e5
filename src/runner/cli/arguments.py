"""Reading the arguments of a verb: positions, our flags, and Hydra's flags wherever they stand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from runner.cli.hydra_value import readable
from runner.errors import Problem, UserError, suggest

HYDRA_VALUED = {
    "--cfg": "--cfg",
    "-c": "--cfg",
    "--package": "--package",
    "-p": "--package",
    "--config-name": "--config-name",
    "-cn": "--config-name",
    "--config-dir": "--config-dir",
    "-cd": "--config-dir",
}
HYDRA_PLAIN = {
    "--multirun": "--multirun",
    "-m": "--multirun",
    "--run": "--run",
    "-r": "--run",
    "--resolve": "--resolve",
    "--hydra-help": "--hydra-help",
}
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
CFG = ("job", "hydra", "all")
REFUSED = {
    "--config-path": "add a folder of your own with --config-dir DIR",
    "-cp": "add a folder of your own with --config-dir DIR",
    "--experimental-rerun": "it reads a pickle; go on with a run by 'runner resume DIR'",
    "--shell-completion": "'runner completion bash' prints the completion script",
    "-sc": "'runner completion bash' prints the completion script",
}


@dataclass
class HydraArguments:
    """The command line of a verb that takes overrides.

    Attributes:
        overrides: in the order given.
        dry_run: --dry-run.
        multirun: -m.
        config_dir: of --config-dir.
        config_name: of --config-name.
        flags: for Hydra itself (--cfg job, --info, …); it answers them instead of running.
    """

    overrides: list[str] = field(default_factory=list)
    dry_run: bool = False
    multirun: bool = False
    config_dir: str | None = None
    config_name: str | None = None
    flags: list[str] = field(default_factory=list)


def split_hydra(arguments: Sequence[str], verb: str) -> HydraArguments:
    """Sort the arguments of `train` or `eval`; flags may stand anywhere.

    Raises:
        UserError: unknown flags, flags without their value, flags that exclude one another. All at once.
    """
    found = HydraArguments()
    problems: list[Problem] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            found.overrides.append(readable(word))
            continue
        name, equals, value = word.partition("=")
        if word == "--":
            continue
        if word == "--dry-run" and verb in ("train", "tune"):
            found.dry_run = True
        elif name in ("--info", "-i"):
            if not equals:
                value = rest.pop(0) if rest and rest[0] in INFO else "all"
            if value not in INFO:
                problems.append(Problem(f"{name} cannot show '{value}'", suggest(value, INFO), f"runner {verb} --help"))
            found.flags += ["--info", value]
        elif name in HYDRA_VALUED:
            flag = HYDRA_VALUED[name]
            if not equals:
                if not rest or rest[0].startswith("-"):
                    problems.append(Problem(f"{name} needs a value", _example(flag), f"runner {verb} --help"))
                    continue
                value = rest.pop(0)
            if flag == "--config-dir":
                found.config_dir = value
            elif flag == "--config-name":
                found.config_name = value.removesuffix(".yaml")
            else:
                if flag == "--cfg" and value not in CFG:
                    problems.append(
                        Problem(f"--cfg cannot show '{value}'", suggest(value, CFG), f"runner {verb} --help")
                    )
                found.flags += [flag, value]
        elif word in HYDRA_PLAIN:
            flag = HYDRA_PLAIN[word]
            if flag == "--multirun":
                found.multirun = True
            elif flag != "--run":
                found.flags.append(flag)
        elif name in REFUSED:
            problems.append(Problem(f"{name} is not supported", REFUSED[name], f"runner {verb} --help"))
        else:
            problems.append(_unknown_flag(word, verb, rest))
    if "--resolve" in found.flags and "--cfg" not in found.flags:
        problems.append(Problem("--resolve goes with --cfg", f"runner {verb} --cfg job --resolve …"))
    if "--package" in found.flags and "--cfg" not in found.flags:
        problems.append(Problem("--package goes with --cfg", f"runner {verb} --cfg job --package optimizer …"))
    if found.multirun and found.flags:
        problems.append(Problem(f"-m and {found.flags[0]} exclude one another", "leave one of them out"))
    if problems:
        raise UserError(problems)
    return found


def _example(flag: str) -> str:
    return {"--cfg": "--cfg job", "--config-dir": "--config-dir DIR"}.get(flag, f"{flag} NAME")


def _unknown_flag(word: str, verb: str, rest: list[str]) -> Problem:
    """`--seed 3` and `--seed=3` are overrides in another dress; everything else is a mistyped flag."""
    own = {
        "train": ["--dry-run"],
        "tune": ["--dry-run"],
        "merge": ["--dry-run", "--from"],
        "validate": ["--all"],
    }.get(verb, [])
    hydra = {**HYDRA_VALUED, **HYDRA_PLAIN, "--info": ""} if verb != "validate" else ("--config-dir", "--multirun")
    long = [flag for flag in (*own, *hydra, "--help") if flag.startswith("--")]
    name, equals, value = word.lstrip("-").partition("=")
    hint = suggest(word, long, limit=20)
    if not hint.startswith("did you mean") and word.startswith("--"):
        if not equals and rest and "=" not in rest[0] and not rest[0].startswith("-"):
            value = rest.pop(0)
        hint = f"overrides are written without dashes: {name.replace('-', '_')}={value or 'VALUE'}"
    return Problem(f"unknown flag '{word}'", hint, f"runner {verb} --help")


def split_plain(
    arguments: Sequence[str],
    verb: str,
    positions: Sequence[str] = (),
    optional: int = 0,
    flags: Sequence[str] = (),
    valued: Sequence[str] = (),
    many: bool = False,
) -> tuple[list[str], Mapping[str, str]]:
    """Sort the arguments of a verb that takes no overrides.

    Args:
        arguments: after the verb.
        verb: for messages.
        positions: names of the positional arguments.
        optional: how many of the last ones may be missing.
        flags: such as "--json".
        valued: flags that take a value, such as "--config-dir".
        many: whether there may be more positional arguments.

    Returns:
        The positional arguments, and flag → value ("" for flags without one).

    Raises:
        UserError: unknown flags, too few or too many arguments.
    """
    given: list[str] = []
    found: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if not word.startswith("-"):
            given.append(word)
        elif name in valued:
            if not equals and (not rest or rest[0].startswith("-")):
                raise UserError(f"{name} needs a value", see=f"runner {verb} --help")
            found[name] = value if equals else rest.pop(0)
        elif word in flags:
            found[word] = ""
        else:
            raise UserError(
                f"unknown flag '{word}'", suggest(word, [*flags, *valued, "--help"]), f"runner {verb} --help"
            )
    usage = f"usage: runner {verb} {' '.join(positions)}".rstrip()
    if len(given) < len(positions) - optional:
        raise UserError(f"runner {verb}: {positions[len(given)]} is missing", usage, f"runner {verb} --help")
    if len(given) > len(positions) and not many:
        extra = " ".join(given[len(positions) :])
        raise UserError(f"runner {verb}: too many arguments: '{extra}'", usage, f"runner {verb} --help")
    return given, found
