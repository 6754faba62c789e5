"""Checking a composed configuration against signatures and schema, all problems at once, without importing torch."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from runner.config import schema
from runner.config.annotations import Kind
from runner.config.build import allowed_packages, is_allowed
from runner.config.keys import Key, schema_keys, signature
from runner.config.source import derives
from runner.errors import Problem, UserError, suggest

MISSING = "???"


@dataclass
class Report:
    """Collects problems and knows where a key came from.

    Attributes:
        origin: key path → " (in +experiment=demo)" or "".
        see: key path of a section → the command that shows its keys, or "".
        allow_missing: shipped options may leave `???` for whoever uses them.
        found: (the key it is about, the problem), in order.
        known: valid keys of the whole configuration, for suggestions.
        done: keys and sections about which enough has been said.
    """

    origin: Callable[[str], str] = lambda _: ""
    see: Callable[[str], str] = lambda _: ""
    allow_missing: bool = False
    found: list[tuple[str, Problem]] = dataclasses.field(default_factory=list)
    known: set[str] = dataclasses.field(default_factory=set)
    done: set[str] = dataclasses.field(default_factory=set)

    def add(self, path: str, what: str, hint: str = "", *, section: str | None = None, see: str = "") -> None:
        """A problem at a key; `see` defaults to the command that shows the section the key lies in."""
        if any(path == key or path.startswith(f"{key}.") for key in self.done):
            return
        section = path.rpartition(".")[0] if section is None else section
        self.found.append((path, Problem(what + self.origin(path), hint, see or self.see(section))))

    def sound(self, path: str) -> bool:
        """Whether nothing is wrong with a key, above it or below it."""
        return not any(bad == path or bad.startswith(f"{path}.") or path.startswith(f"{bad}.") for bad, _ in self.found)


BASES = {
    "weighting": "runner.weighting.base.Weighting",
    "wrapper": "runner.training.wrappers.base.Wrapper",
    "architecture": "runner.architectures.base.Architecture",
    "backbone": "runner.backbones.base.Backbone",
    "mixture": "runner.mixtures.base.Mixture",
    "mixture.tasks.*": "runner.tasks.base.Task",
    "merge": "runner.merging.base.Merge",
}
"""Section → what its component must be derived from."""


def check_value(path: str, value: Any, kind: Kind, report: Report) -> None:
    """Report a value that is missing or of the wrong kind, and look into components nested in it."""
    if value == MISSING:
        if not report.allow_missing:
            report.add(path, f"missing value for '{path}'", f"give it: {path}={_example(kind)}")
        return
    if not kind.accepts(_without_missing(value)):
        hint = ""
        if any(str(choice) == str(value) for choice in kind.choices):  # "18" for 18, or 18 for "18"
            hint = (
                f"write {value} without quotes"
                if isinstance(value, str)
                else f"""write it as text: {path}="'{value}'\""""
            )
        elif kind.choices and isinstance(value, str):
            hint = suggest(value, map(str, kind.choices))
        elif isinstance(value, str) and kind.words.startswith(("a list", "a tuple")):
            hint = f"lists are written in brackets, quoted for the shell: '{path}=[{value}]'"
        report.add(path, f"'{path}' must be {kind.words}, not {_show(value)}", hint)
        return
    check_nested(path, value, report)


def check_nested(path: str, value: Any, report: Report) -> None:
    """Look for components and missing values anywhere inside a value of the right kind."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            check_component(path, value, report, optional=True)
            return
        for key, item in value.items():
            inner = f"{path}.{key}"
            if item == MISSING and not report.allow_missing:
                report.add(inner, f"missing value for '{inner}'", f"give it: {inner}=VALUE")
            else:
                check_nested(inner, item, report)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            check_nested(f"{path}.{index}", item, report)


def check_component(path: str, config: Any, report: Report, optional: bool = False) -> None:
    """Check a section that names what to build: the target, its keys and their values."""
    if not isinstance(config, Mapping):
        report.add(path, f"'{path}' must be a mapping with a _target_, not {_show(config)}", section=path)
        return
    if "_target_" not in config or (config["_target_"] is None and not optional):
        hint = f"choose an option: {path}=OPTION" if path in schema.COMPONENTS else ""
        report.add(path, f"'{path}' has no _target_: nothing says what to build", hint, section=path)
        return
    target = config["_target_"]
    if target is None:
        lost = [f"{path}.{key}" for key in config if key != "_target_"]
        if lost:
            what = f"no effect of {', '.join(map(repr, lost))} without an option of '{path}', which is none"
            see = f"runner ls {path}" if path in schema.COMPONENTS else ""
            report.add(lost[0], what, f"choose the option that the key belongs to: {path}=OPTION", see=see)
        return
    if target == MISSING and report.allow_missing:
        return
    if not isinstance(target, str) or not is_allowed(target):
        hint = f"allowed packages: {', '.join(allowed_packages())}; add your own with plugins=[your_package]"
        report.add(f"{path}._target_", f"'{path}._target_' {_show(target)} is outside the allowed packages", hint)
        return
    try:
        keys = signature(target)
    except UserError as error:
        for problem in error.problems:
            report.add(f"{path}._target_", f"'{path}._target_' is '{target}': {problem.what}", problem.hint)
        return
    first, _, last = path.rpartition(".")
    base = BASES.get("mixture.tasks.*" if first == "mixture.tasks" and last else path)
    if base is not None and not derives(target, base):
        what = f"'{path}._target_' is '{target}', which is no {base.rpartition('.')[2]}"
        report.add(f"{path}._target_", what, f"derive the class from {base}")
        return
    given = {str(k): v for k, v in config.items() if k != "_target_"}
    check_keys(path, given, keys, report)


def check_keys(path: str, given: Mapping[str, Any], keys: Mapping[str, Key], report: Report) -> None:
    """Unknown keys, missing keys and wrong values of one section."""
    prefix = f"{path}." if path else ""
    for name, value in given.items():
        if name not in keys:
            hint = suggest_key(name, keys, prefix, report.known)
            report.add(f"{prefix}{name}", f"unknown key '{prefix}{name}'", hint, section=path)
        else:
            check_value(f"{prefix}{name}", value, keys[name].kind, report)
    for name, key in keys.items():
        if key.required and name not in given and not report.allow_missing:
            hint = f"give it: {prefix}{name}={_example(key.kind)}"
            report.add(f"{prefix}{name}", f"missing value for '{prefix}{name}'", hint)


def check_section(path: str, config: Any, cls: type, report: Report) -> None:
    """Check a section without a `_target_` against its dataclass, looking into nested dataclasses."""
    if not isinstance(config, Mapping):
        first = next(iter(schema_keys(cls)))
        hint = f"set its keys one by one, such as {path}.{first}=…"
        report.add(path, f"'{path}' must be a mapping, not {_show(config)}", hint, section=path)
        return
    nested: dict[str, Any] = {
        f.name: f.default_factory for f in dataclasses.fields(cls) if dataclasses.is_dataclass(f.default_factory)
    }
    check_keys(path, {k: v for k, v in config.items() if k not in nested}, schema_keys(cls), report)
    for name, inner in nested.items():
        if name in config:
            check_section(f"{path}.{name}" if path else name, config[name], inner, report)


def check_train(config: Mapping[str, Any], report: Report) -> None:
    """Check the whole configuration of `runner train`."""
    known = [*schema.COMPONENTS, *schema.SECTIONS, *schema_keys(schema.TrainKeys)]
    report.known = known_keys(config)
    _unknown_top(config, known, report)
    for name in schema.COMPONENTS:
        if name not in config:
            report.add(name, f"there is no '{name}'", f"choose one: {name}=OPTION", section=name)
        else:
            check_component(name, config[name], report, optional=name in schema.OPTIONAL_COMPONENTS)
    for name, cls in schema.SECTIONS.items():
        if name in config:
            check_section(name, config[name], cls, report)
    plain = schema_keys(schema.TrainKeys)
    check_keys("", {k: v for k, v in config.items() if k in plain}, plain, report)
    mixture = config.get("mixture")
    tasks = mixture.get("tasks") if isinstance(mixture, Mapping) else None
    for name, task in tasks.items() if isinstance(tasks, Mapping) else ():
        if not isinstance(task, Mapping) or "_target_" not in task:
            check_component(f"mixture.tasks.{name}", task, report)


def check_eval(config: Mapping[str, Any], report: Report) -> None:
    """Check the whole configuration of `runner eval`."""
    plain = schema_keys(schema.EvalKeys)
    _unknown_top(config, ["launch", *plain], report)
    check_keys("", {k: v for k, v in config.items() if k in plain}, plain, report)
    if "launch" in config:
        check_section("launch", config["launch"], schema.LaunchConfig, report)


def check_merge(config: Mapping[str, Any], report: Report) -> None:
    """Check the whole configuration of `runner merge`."""
    plain = schema_keys(schema.MergeKeys)
    report.known = {*plain, *(f"merge.{key}" for key in _target_keys(config.get("merge")))}
    _unknown_top(config, ["merge", *plain], report)
    check_keys("", {k: v for k, v in config.items() if k in plain}, plain, report)
    check_component("merge", config.get("merge"), report)


def _target_keys(section: Any) -> Iterable[str]:
    target = section.get("_target_") if isinstance(section, Mapping) else None
    if isinstance(target, str) and is_allowed(target):
        with contextlib.suppress(UserError):  # an unknown target is reported where it stands
            return signature(target)
    return ()


def _unknown_top(config: Mapping[str, Any], known: list[str], report: Report) -> None:
    for name in config:
        if name not in known:
            hint = suggest_key(str(name), known, "", report.known)
            if name == "experiment":  # without the line, Hydra puts its keys below the group's name
                hint = "the YAML of an experiment opens with the line '# @package _global_'"
            report.add(str(name), f"unknown key '{name}'", hint, section="")


def suggest_key(name: str, siblings: Iterable[str], prefix: str, elsewhere: Iterable[str]) -> str:
    """`did you mean 'optimizer.lr'?   valid: lr, weight_decay`: among the keys beside it, then in other sections."""
    valid = sorted(siblings)
    moved = sorted({p for p in elsewhere if p.rpartition(".")[2] == name}, key=lambda p: (p.count("."), p))[:3]
    # The same word in another section is a better guess than a word that is only somewhat alike.
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.75 if moved else 0.6)
    meant = [f"{prefix}{word}" for word in close] or moved
    listed = f"valid: {', '.join(valid)}" if valid else "it takes no keys"
    return f"did you mean {' or '.join(map(repr, meant))}?   {listed}" if meant else listed


def known_keys(config: Mapping[str, Any]) -> set[str]:
    """Every valid key of the sections as they are composed, by dotted path."""
    found = set(schema_keys(schema.TrainKeys))
    for section, cls in schema.SECTIONS.items():
        found |= {f"{section}.{key}" for key in schema_keys(cls)}
    found |= {f"tracking.wandb.{key}" for key in schema_keys(schema.WandbConfig)}
    queue: list[tuple[str, Any]] = [(name, config.get(name)) for name in schema.COMPONENTS]
    while queue:
        path, section = queue.pop()
        if not isinstance(section, Mapping):
            continue
        target = section.get("_target_")
        if isinstance(target, str) and is_allowed(target):
            with contextlib.suppress(UserError):  # an unknown target is reported where it stands
                found |= {f"{path}.{key}" for key in signature(target)}
        queue += [(f"{path}.{key}", value) for key, value in section.items()]
    return found


def _without_missing(value: Any) -> Any:
    """A copy of a mapping without its `???`: they are reported by themselves."""
    if isinstance(value, Mapping):
        return {k: _without_missing(v) for k, v in value.items() if v != MISSING}
    return value


def _example(kind: Kind) -> str:
    return str(kind.choices[0]) if kind.choices else "VALUE"


def _show(value: Any) -> str:
    """A value as a person wrote it: null, true, 'text', 3."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "a mapping" if value else "an empty mapping"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
