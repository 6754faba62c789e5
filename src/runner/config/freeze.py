"""From a composed configuration to the plain, checked dict that a run is frozen with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runner.config import plugins, schema, static
from runner.config.compose import Composed, compose, without_hydra
from runner.config.merging import check_places
from runner.config.origins import leave_out, origins, shows
from runner.config.preflight import check_data, cross_check
from runner.config.signature import affects_weights
from runner.errors import UserError, suggest


def finalize(composed: Composed, *, data: bool = True) -> dict[str, Any]:
    """Resolve, check and complete the configuration of `runner train`.

    Args:
        composed: what `runner.config.compose.compose` gave.
        data: whether to ask the mixture for its data as well.

    Returns:
        A plain dict: `mixture.tasks` filtered by `tasks`, `name` filled in, places absolute.

    Raises:
        UserError: with every problem that could be found without importing torch.
    """
    config, report = _examine(composed)
    static.check_train(config, report)
    if all(isinstance(config.get(s), dict) for s in (*schema.COMPONENTS, *schema.SECTIONS)):
        cross_check(config, report)
    if not composed.problems and all(map(report.sound, ("mixture", "tasks", "data_root", "plugins"))):
        _complete(config, composed.choices)
        complete_init(config, composed, report)
        unroll_rounds(config, report)
        if data:
            report.found += [("mixture", problem) for problem in check_data(config)]
    _raise(composed, report)
    return config


def complete_init(config: dict[str, Any], composed: Composed, report: static.Report) -> None:
    """`init` as it is frozen: an absolute path, or an experiment with its own frozen configuration."""
    init = config.get("init")
    if isinstance(init, str):
        config["init"] = _absolute(init)
        if not Path(config["init"]).exists():
            hint = "a run, a folder or file of safetensors, or 'init={experiment: NAME}'"
            report.add("init", f"init={init}: there is nothing", hint)
    if not isinstance(init, Mapping):
        return
    static.check_section("init", {k: v for k, v in init.items() if k != "config"}, schema.InitConfig, report)
    if init.get("config") is not None:
        report.add("init.config", "'init.config' is filled in by runner", "name the experiment: init.experiment=NAME")
    if not report.sound("init"):
        return
    lines = [f"+experiment={init['experiment']}", *init.get("overrides", [])]
    if init["experiment"] == composed.choices.get("experiment"):
        report.add("init.experiment", f"init.experiment={init['experiment']} is this experiment itself")
        return
    try:
        own = str(composed.folders[0]) if len(composed.folders) > 1 else None
        base = finalize(compose("train", lines, own), data=False)
    except UserError as error:
        for problem in error.problems:
            report.add(
                "init", f"init, experiment '{init['experiment']}': {problem.what}", problem.hint, see=problem.see
            )
        return
    for key in ("launch", "tracking", "data_root", "output_dir", "plugins"):
        base[key] = deepcopy(config[key])
    base |= {"seed": config["seed"] if init.get("seed") is None else init["seed"], "run_dir": None, "baseline": None}
    config["init"] = {**init, "config": base}


def unroll_rounds(config: dict[str, Any], report: static.Report) -> None:
    """`merge.rounds=n` (alternating tuning and merging) as a chain: every round starts from the merge before it.

    Each round trains its experts for an n-th of `trainer.max_steps`, so the whole budget stays what it was
    (Zhou et al. 2024, arXiv 2411.03055). Round n is this run; the others are runs that it needs.
    """
    merge = config["merge"]
    rounds = merge.get("rounds", 1) if merge.get("_target_") else 1
    if rounds == 1 or not report.sound("merge") or not report.sound("trainer"):
        return
    steps = config["trainer"]["max_steps"]
    if steps is None or steps < rounds:
        what = f"merge.rounds={rounds} shares trainer.max_steps={'null' if steps is None else steps} among its rounds"
        report.add("merge.rounds", what, f"set trainer.max_steps to {rounds} or more")
        return
    config["trainer"]["max_steps"] = steps // rounds
    start = config["init"]
    for number in range(1, rounds):
        name = f"{config['name']}/round-{number}-of-{rounds}"
        before = deepcopy(config) | {"name": name, "init": start, "run_dir": None, "baseline": None}
        before["merge"]["rounds"] = 1
        start = {"experiment": name, "seed": None, "overrides": [], "config": before}
    config["init"] = start


def finalize_eval(composed: Composed) -> dict[str, Any]:
    """Resolve, check and complete the configuration of `runner eval`.

    Raises:
        UserError: with every problem.
    """
    config, report = _examine(composed)
    static.check_eval(config, report)
    _raise(composed, report)
    for key in ("run", "output_dir", "run_dir", "data_root"):
        if config.get(key):
            config[key] = _absolute(config[key])
    return config


def finalize_merge(composed: Composed) -> dict[str, Any]:
    """Resolve, check and complete the configuration of `runner merge`; models are only looked for, not opened.

    Raises:
        UserError: with every problem that could be found without importing torch.
    """
    config, report = _examine(composed)
    static.check_merge(config, report)
    for name, value in schema.merge_defaults().items():
        config.setdefault(name, value)
    check_places(config, report)
    _raise(composed, report)
    return config


def _raise(composed: Composed, report: static.Report) -> None:
    problems = list(dict.fromkeys([*composed.problems, *(problem for _, problem in report.found)]))
    if problems:
        raise UserError(problems)


def _examine(composed: Composed) -> tuple[dict[str, Any], static.Report]:
    if "experiment" in composed.doubtful:  # what the others complain about may be the missing experiment
        raise UserError(composed.problems)
    report = static.Report(origin=origins(composed), see=shows(composed), done=set(composed.doubtful))
    config = resolve(composed, report)
    composed.notes += leave_out(config, composed)
    names = config.get("plugins", [])
    if isinstance(names, list):
        for problem in plugins.register(names):
            report.add("plugins", problem.what, problem.hint)
    for name, cls in schema.SECTIONS.items():
        if isinstance(config.get(name), dict):
            config[name] = _with_defaults(config[name], schema.section_defaults(name), cls)
    return config, report


def _with_defaults(given: dict[str, Any], defaults: dict[str, Any], cls: type) -> dict[str, Any]:
    """A section in the order of its schema, keys that are not given filled in; unknown keys stay, to be reported."""
    merged = {f.name: given.get(f.name, defaults[f.name]) for f in fields(cls)}
    for name, value in merged.items():
        if isinstance(value, dict) and isinstance(defaults[name], dict):
            merged[name] = {**defaults[name], **value}
    return merged | {k: v for k, v in given.items() if k not in merged}


def _complete(config: dict[str, Any], choices: Mapping[str, str]) -> None:
    if config.get("tasks") is not None:
        tasks = config["mixture"]["tasks"]
        config["mixture"]["tasks"] = {name: task for name, task in tasks.items() if name in config["tasks"]}
    if config.get("name") is None:
        config["name"] = choices.get("experiment") or choices.get("mixture") or "run"
    for key in ("data_root", "output_dir", "run_dir", "sweep_dir"):
        if config.get(key):
            config[key] = _absolute(config[key])
    if isinstance(config["baseline"], str) and config["baseline"] not in ("auto", "none"):
        config["baseline"] = _absolute(config["baseline"])


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


# ---- resolving -----------------------------------------------------------------------------------------------------


def resolve(composed: Composed, report: static.Report) -> dict[str, Any]:
    """A composed configuration as plain python; interpolations that cannot be resolved are reported."""
    before = HydraConfig.instance().cfg
    if "hydra" in composed.config:  # for ${hydra:…}; in a job of a sweep Hydra has set it already
        HydraConfig.instance().set_config(composed.config)
    try:
        return _resolve(composed, report)
    finally:
        HydraConfig.instance().cfg = before


def _resolve(composed: Composed, report: static.Report) -> dict[str, Any]:
    cfg = without_hydra(composed.config)
    for path, text in _raw_strings(cfg):
        if "${oc.env:" in text.replace(" ", "") and affects_weights(path):
            what = f"'{path}' reads the environment ({text}), but it affects the weights"
            report.add(path, what, "write the value into the configuration: a run must mean the same everywhere")
            report.done.add(path)
    plain = _plain(cfg, "", report)
    assert isinstance(plain, dict)
    return plain


def _raw_strings(node: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every text as it is written, by dotted path."""
    if isinstance(node, DictConfig | ListConfig) and not (node._is_none() or node._is_missing()):
        if node._is_interpolation():
            yield prefix, str(node._value())
            return
        keys: Any = node.keys() if isinstance(node, DictConfig) else range(len(node))
        for key in keys:
            child = node._get_node(key)
            yield from _raw_strings(child, f"{prefix}.{key}" if prefix else str(key))
    elif node is not None and not isinstance(node, DictConfig | ListConfig) and isinstance(node._value(), str):
        yield prefix, node._value()


def _plain(node: DictConfig | ListConfig, prefix: str, report: static.Report) -> Any:
    """A container as plain python; what cannot be resolved is reported and stands as null."""
    keys: list[Any] = list(node.keys()) if isinstance(node, DictConfig) else list(range(len(node)))
    values: list[Any] = []
    for key in keys:
        path = f"{prefix}.{key}" if prefix else str(key)
        if OmegaConf.is_missing(node, key):
            values.append(static.MISSING)
            continue
        try:
            value = node[key]
        except OmegaConfBaseException as error:
            child: Any = node._get_node(key)
            raw = child._value()
            what = f"'{path}' is {raw}, which cannot be resolved: {_cause(error)}"
            report.add(path, what, _interpolation_hint(error, node))
            report.done.add(path)  # the null in its place is not the user's
            values.append(None)
            continue
        values.append(_plain(value, path, report) if OmegaConf.is_config(value) else value)
    if isinstance(node, DictConfig):
        return {str(k): v for k, v in zip(keys, values, strict=True)}
    return values


def _cause(error: BaseException) -> str:
    return str(error).strip().splitlines()[0].removeprefix("ValidationError raised while resolving interpolation: ")


def _interpolation_hint(error: BaseException, node: DictConfig | ListConfig) -> str:
    """Suggestions among the keys beside the one that an interpolation names."""
    words = str(error).split("'")
    if "Interpolation key" not in str(error) or len(words) < 2:
        return ""
    parent, _, leaf = words[1].rpartition(".")
    root: Any = node._get_root()
    beside = OmegaConf.select(root, parent, throw_on_missing=False) if parent else root
    return suggest(leaf, [str(k) for k in beside], limit=24) if isinstance(beside, DictConfig) else ""
