"""What can be wrong with the models of `runner merge` as far as names and folders say; nothing is opened."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runner.config.build import is_allowed
from runner.config.source import constant
from runner.config.static import MISSING, Report

Config = Mapping[str, Any]


def check_places(config: dict[str, Any], report: Report) -> None:
    """Report what is missing, doubled or in the way; makes paths absolute."""
    _strategy(config, report)
    if report.sound("models"):
        _models(config, report)
    if report.sound("base") and config.get("base"):
        config["base"] = _absolute(config["base"])
        _exists(config["base"], "base", report)
        if report.sound("models") and config["base"] in config["models"]:
            what = "the base is among the models: its task vector is zero"
            report.add("base", what, "leave it out of models, or out of base")
    if report.sound("out") and config.get("out") not in (None, MISSING):
        _out(config, report)
    names = config.get("names")
    if names is not None and report.sound("names") and report.sound("models"):
        if len(names) != len(config["models"]):
            what = f"'names' has {len(names)} names for {len(config['models'])} models"
            report.add("names", what, "give one per model, in order")
        elif len(set(names)) < len(names) or not all(_plain_name(n) for n in names):
            report.add(
                "names", "'names' must be different plain words without '/' or '@'", "such as names=[cars,digits]"
            )
    if config.get("batchnorm") == "reestimate":
        what = "'batchnorm=reestimate' needs data, and `runner merge` reads none"
        report.add(
            "batchnorm", what, "merge inside an experiment, or take batchnorm=average", see="runner ls experiment"
        )


def _plain_name(name: str) -> bool:
    return bool(name) and not set(name) & set("/@\\") and name not in (".", "..") and not name.startswith(".")


def _strategy(config: Config, report: Report) -> None:
    section = config.get("merge")
    if not isinstance(section, Mapping):
        return  # said already
    target = section.get("_target_")
    if not isinstance(target, str) or not is_allowed(target):
        if "_target_" in section and target is None:
            report.done.discard("merge")
            report.found = [(path, p) for path, p in report.found if path != "merge"]
            report.add("merge", "no strategy is chosen", "choose one: merge=ties", see="runner ls merge")
        return
    name = target.rpartition(".")[2]
    if constant(target, "base_use") == "unused" and config.get("base"):
        report.add("base", f"'{name}' reads no base", "leave base out")
    if section.get("rounds", 1) != 1:
        what = "'merge.rounds' alternates tuning and merging, and `runner merge` tunes nothing"
        report.add("merge.rounds", what, "use it in an experiment: runner train +experiment=NAME merge.rounds=2")
    if constant(target, "needs") in ("unlabelled", "labelled"):
        what = f"'{name}' needs data, and `runner merge` reads none"
        report.add(
            "merge", what, "use it in an experiment: runner train +experiment=NAME merge=…", see="runner ls merge"
        )


def _models(config: dict[str, Any], report: Report) -> None:
    models = config.get("models")
    if not isinstance(models, list):
        return
    if not models:
        report.add("models", "'models' is empty", "give the experts: 'models=[DIR,DIR]'")
    config["models"] = models = [_absolute(m) for m in models]
    seen: dict[Path, str] = {}
    for model in models:
        _exists(model, "models", report)
        place = Path(model).resolve()
        if place in seen:
            what = f"models: '{model}' stands there twice"
            report.add("models", what, "leave one out; merge.weights counts a model more than once")
        seen[place] = model


def _exists(path: str, key: str, report: Report) -> None:
    place = Path(path.rpartition("@")[0]) if "@" in Path(path).name and not Path(path).exists() else Path(path)
    if not place.exists():
        report.add(key, f"{key}: there is no model at '{path}'", "give a local folder or file; nothing is downloaded")


def _out(config: dict[str, Any], report: Report) -> None:
    config["out"] = _absolute(config["out"])
    out = Path(config["out"])
    models = config["models"] if isinstance(config.get("models"), list) else []
    inputs = [Path(p).resolve() for p in [*models, *([config["base"]] if config["base"] else [])]]
    if any(out.resolve() == place or place in out.resolve().parents for place in inputs):
        report.add("out", f"'out={out}' lies in an input", "give a folder of its own")
    elif out.is_file():
        report.add("out", f"'out={out}' is a file", "give the folder that is to be made")
    elif out.is_dir() and any(out.iterdir()) and not (out / "merge.json").is_file():
        report.add("out", f"'{out}' exists already", "nothing is overwritten: choose another out=DIR")


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())
