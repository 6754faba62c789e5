"""README.md of an exported folder: what the model is, how well it does, how to load it, how to train it again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from runner.exporting.trunks import Trunk
from runner.files import write_atomic
from runner.launching.rundir import RunDirectory

ARROWS = {"up": "↑", "down": "↓"}


def write_card(
    folder: Path,
    run: RunDirectory,
    config: Mapping[str, Any],
    about: Mapping[str, Any],
    reading: str,
    licence: str | None,
) -> None:
    """Write README.md."""
    sections = [
        _front_matter(config, about, licence),
        f"# {about['name']}",
        _what(config, about),
        "## Results\n\n" + _results(run, about),
        "## Loading\n\n" + _loading(about) + f"\n\n{reading}",
        "## Training\n\n" + _training(run, config),
        "## Data\n\n" + _data(config),
        "## Licence\n\n" + _licence(config, licence),
    ]
    write_atomic(folder / "README.md", "\n\n".join(sections) + "\n")


def _front_matter(config: Mapping[str, Any], about: Mapping[str, Any], licence: str | None) -> str:
    held = [t["library"] for t in about["backbones"] if t["folder"]]
    matter: dict[str, Any] = {"library_name": held[0]} if held else {}
    matter["tags"] = ["runner", "multi-task-learning", *config["mixture"]["tasks"]]
    if licence:
        matter["license"] = licence
    start = config["backbone"].get("pretrained")
    if start and not Path(start).is_absolute() and not start.startswith((".", "~")):
        matter["base_model"] = start
    return f"---\n{yaml.safe_dump(matter, sort_keys=False, allow_unicode=True)}---"


def _what(config: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    tasks = ", ".join(config["mixture"]["tasks"])
    kinds = " and ".join(dict.fromkeys(t["kind"] or "a network of runner's own" for t in about["backbones"]))
    count = len(about["backbones"])
    backbones = f"a backbone ({kinds})" if count == 1 else f"{count} backbones ({kinds})"
    average = ", averaged over training (EMA)" if about["averaged"] else ""
    average += ", with its adapters folded in" if about["folded"] else ""
    return (
        f"A model for {tasks}: {backbones} and a head for each task, combined by "
        f"`{_short(config['architecture'])}`, trained with the weighting `{_short(config['weighting'])}`. "
        f"These are the weights of {about['checkpoint']}{average}."
    )


def _short(section: Mapping[str, Any]) -> str:
    return str(section["_target_"]).rpartition(".")[2]


def _results(run: RunDirectory, about: Mapping[str, Any]) -> str:
    result = run.result()
    if result is None:
        return "The run was exported before it was finished; it has no final result."
    best = result.get("best_step")
    lines = [f"Split: {result['split']}.", "", "| task | metric | value |", "|---|---|---|"]
    for task, metrics in result["tasks"].items():
        for metric, value in metrics.items():
            arrow = ARROWS.get((result.get("directions") or {}).get(task, {}).get(metric, "down"), "")
            shown = "undefined" if value is None else f"{value:.4g}"
            mark = "**" if metric == (result.get("headline") or {}).get(task) else ""
            lines.append(f"| {task} | {mark}{metric}{mark} {arrow} | {mark}{shown}{mark} |")
    if best is not None and int(about["checkpoint"].removeprefix("step-")) != best:
        lines += ["", f"These numbers are of the best checkpoint, step {best}, not of the exported one."]
    return "\n".join(lines)


def _loading(about: Mapping[str, Any]) -> str:
    parts = []
    for trunk in about["backbones"]:
        if trunk["folder"] is None:
            parts.append(
                f"The backbone `{trunk['name']}` **cannot be loaded by {trunk['library']}**: {trunk['problem']}. Its "
                "weights are in `runner/rest.safetensors`."
            )
            continue
        place = "DIR" if trunk["folder"] == "." else f"DIR/{trunk['folder']}"
        output = "four maps equal" if trunk["library"] == "timm" else "last hidden state equals"
        load = "import timm" if trunk["library"] == "timm" else f"from transformers import {trunk['auto']}"
        code = f"{load}\n\nbackbone = {Trunk(**trunk).call(place)}"
        parts.append(f"```python\n{code}\n```")
        if trunk["problem"]:
            parts.append(f"**It loads, but gives other features than the run had**: {trunk['problem']}.")
        else:
            parts.append(
                f"Checked when it was exported: its {output} the run's (largest difference "
                f"{trunk['difference']:.1g} of the largest value)."
            )
    if any(t["folder"] for t in about["backbones"]):
        parts.append("It can start another run: `runner train … backbone.pretrained=DIR`.")
    whole = 'from runner.exporting import load\n\nmodel = load("DIR")\npredictions = model.predict(inputs)  # by task'
    parts.append(
        "The whole model, heads included, is read back by runner; `inputs` is what the mixture feeds the backbone "
        f"(`model.inputs`):\n\n```python\n{whole}\n```"
    )
    return "\n\n".join(parts)


def _training(run: RunDirectory, config: Mapping[str, Any]) -> str:
    info = run.info()
    git = info.get("git")
    lines = [
        f"```bash\nrunner {shlex.join(map(str, info['argv']))}\n```",
        "",
        f"- signature `{info['signature']}`, seed {info['seed']}",
        f"- optimizer `{_short(config['optimizer'])}`, batch size {config['trainer']['batch_size']}, "
        f"precision {config['trainer']['precision']}",
    ]
    if git:
        lines.append(f"- code at `{git['sha']}`" + (", with changes that were not committed" if git["dirty"] else ""))
    lines.append("- " + ", ".join(f"{name} {version}" for name, version in info["packages"].items()))
    lines.append("- the frozen configuration: `runner/config.yaml`")
    return "\n".join(lines)


def _data(config: Mapping[str, Any]) -> str:
    mixture = {key: value for key, value in config["mixture"].items() if key != "tasks"}
    text = yaml.safe_dump(mixture, sort_keys=False, allow_unicode=True)
    return f"The mixture, as it was configured:\n\n```yaml\n{text}```"


def _licence(config: Mapping[str, Any], licence: str | None) -> str:
    if licence:
        return f"{licence}."
    start = config["backbone"].get("pretrained")
    sources = f"`{start}`, which training started from, and of the data" if start else "the data it was trained on"
    return f"None was stated at export. The terms of {sources} apply to what was made from them."
