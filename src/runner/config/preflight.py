"""What can be wrong between sections, and whether the data is there: checked before a directory is claimed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from runner.config.build import build
from runner.config.keys import signature
from runner.config.schema import section_defaults
from runner.config.source import constant
from runner.config.static import Report
from runner.config.weighting_fit import (
    batch_parts,
    log_losses,
    slimmable_statistics,
    weighting_mode,
    wrapper_architecture,
    wrapper_fit,
)
from runner.errors import Problem, UserError, suggest
from runner.reporting.given import read_baseline

Config = Mapping[str, Any]


def cross_check(config: Config, report: Report) -> None:
    """Report impossible combinations; a check is left out where its own inputs are already reported as wrong."""
    for inputs, check in CHECKS:
        if all(map(report.sound, inputs)):
            check(config, report)


def input_kinds(config: Config, report: Report) -> None:
    """The backbone must read what the mixture gives."""
    gives = constant(config["mixture"]["_target_"], "input_kind")
    reads = constant(config["backbone"]["_target_"], "input_kind")
    if gives and reads and gives != reads:
        what = (
            f"the mixture gives {_KIND_WORDS.get(gives, gives)}, but the backbone reads {_KIND_WORDS.get(reads, reads)}"
        )
        hint = f"choose a backbone for {_KIND_WORDS.get(gives, gives)}: backbone=OPTION"
        report.add("backbone", what, hint, see="runner ls backbone")


_KIND_WORDS = {"image": "images", "text": "text", "table": "tables", "graph": "molecules"}


def batch_split(config: Config, report: Report) -> None:
    """A batch must divide over processes and micro-batches."""
    trainer, processes = config["trainer"], config["launch"]["num_processes"]
    parts = trainer["accumulation"] * processes
    if trainer["batch_size"] % parts:
        lower = trainer["batch_size"] // parts * parts
        fitting = [str(n) for n in (lower, lower + parts) if n > 0]
        report.add(
            "trainer.batch_size",
            f"trainer.batch_size={trainer['batch_size']} cannot be divided by"
            f" trainer.accumulation={trainer['accumulation']} x launch.num_processes={processes}",
            f"such as trainer.batch_size={' or '.join(fitting)}",
        )


def length(config: Config, report: Report) -> None:
    """Exactly one of max_steps and epochs says when to stop."""
    steps, epochs = config["trainer"]["max_steps"], config["trainer"]["epochs"]
    if steps is not None and epochs is not None:
        what = f"trainer.max_steps={steps} and trainer.epochs={epochs} are both set"
        report.add("trainer.epochs", what, "set one of them to null: trainer.max_steps=null")
    elif steps is None and epochs is None:
        report.add(
            "trainer.max_steps", "neither trainer.max_steps nor trainer.epochs says when to stop", "set one of them"
        )


def half_precision(config: Config, report: Report) -> None:
    """float16 needs loss scaling on a GPU."""
    if config["trainer"]["precision"] == "fp16" and config["launch"]["device"] == "cpu":
        report.add("trainer.precision", "trainer.precision=fp16 needs a GPU, but launch.device=cpu", "use fp32 or bf16")


def task_selection(config: Config, report: Report) -> None:
    """`tasks=[…]` must name tasks of the mixture, and some must be left."""
    tasks, chosen = config["mixture"].get("tasks") or {}, config["tasks"]
    if not tasks:
        report.add(
            "mixture.tasks", "the mixture has no tasks", "add some with /task@tasks.NAME: OPTION in its defaults"
        )
    if chosen is None:
        return
    if not chosen:
        report.add("tasks", "tasks=[] selects no task", suggest("", tasks))
    for name in chosen:
        if name not in tasks:
            report.add("tasks", f"unknown task '{name}' in tasks={_list(chosen)}", suggest(name, tasks))
    for name in {n for n in chosen if chosen.count(n) > 1}:
        report.add("tasks", f"tasks={_list(chosen)} names '{name}' twice", "name each task once")


def selection_metric(config: Config, report: Report) -> None:
    """`trainer.select` is auto, last or task/metric, with a task that is trained."""
    select = config["trainer"]["select"]
    if select in ("auto", "last"):
        return
    names = _chosen(config)
    task, slash, metric = select.partition("/")
    if not slash or not metric:
        report.add(
            "trainer.select",
            f"trainer.select={select} is not auto, last or task/metric",
            f"such as {next(iter(names), 'task')}/METRIC",
        )
    elif task not in names:
        report.add("trainer.select", f"trainer.select={select} names an unknown task '{task}'", suggest(task, names))
    else:
        key = signature(config["mixture"]["tasks"][task]["_target_"]).get("headline")
        metrics = key.kind.choices if key else ()  # a task's headline may be any of its metrics
        if metrics and metric not in metrics:
            what = f"trainer.select={select}: task '{task}' has no metric '{metric}'"
            report.add("trainer.select", what, suggest(metric, map(str, metrics), limit=20))


def run_name(config: Config, report: Report) -> None:
    """The name becomes a folder below output_dir/train, and must stay there."""
    name = config["name"]
    if name is None:
        return
    parts = name.split("/")
    if not name.strip() or any(part in ("", ".", "..") or part != part.strip() for part in parts):
        what = f"name='{name}' cannot be the name of a folder"
        report.add("name", what, "letters, digits, - and _; a / makes a folder in a folder")


def fitted_heads(config: Config, report: Report) -> None:
    """A probe of random features would freeze heads on noise; a tangent space needs a point worth expanding around."""
    somewhere = config.get("init") is not None or config["backbone"].get("pretrained") is not None
    finetune = config["finetune"]
    for key, value in (("heads", finetune["heads"]), ("mode", finetune["mode"])):
        if value in ("probe", "probe_train", "linearized") and not somewhere:
            what = f"finetune.{key}={value} works on a trained backbone, and this one starts from scratch"
            report.add(f"finetune.{key}", what, "give it a start: init=RUN, or backbone.pretrained=…")


def merge_launch(config: Config, report: Report) -> None:
    """What a merge in the launcher needs: two tasks or more on one shared backbone."""
    if not config["merge"].get("_target_"):
        return
    if len(_chosen(config)) < 2:
        report.add("merge", "a merge needs experts of two tasks or more", "merge=none trains a single task")
    if not str(config["architecture"].get("_target_", "")).endswith(".HardSharing"):
        what = "a merged model has one backbone and a head per task: it needs architecture=hard_sharing"
        report.add("architecture", what, "leave architecture out, or set merge=none")


def merge_subsets(config: Config, report: Report) -> None:
    """`merging.experts` names subsets of the tasks, every task in one at most."""
    tasks, subsets = _chosen(config), config["merging"]["experts"]
    if not subsets or not config["merge"].get("_target_"):
        return
    key, owners = "merging.experts", dict[str, list[str]]()
    for expert, own in subsets.items():
        if not own or "/" in expert or not expert.strip(". "):
            report.add(key, f"{key}: '{expert}' is not a name with tasks", "such as {digits: [mnist, usps]}")
        if expert in tasks and own != [expert]:
            report.add(key, f"{key}: '{expert}' is the name of a task", "give the subset a name of its own")
        for task in own:
            owners.setdefault(task, []).append(expert)
            if task not in tasks:
                report.add(key, f"unknown task '{task}' in {key}.{expert}", suggest(task, tasks))
    for task, experts in owners.items():
        if len(experts) > 1:
            what = f"{key}: task '{task}' is named in {' and in '.join(experts)}"
            report.add(key, what, "its head comes from one expert: name it once")
    if len(tasks) > 1 and len(subsets) == 1 and set(tasks) <= owners.keys():
        report.add(key, f"{key}: one expert of all tasks leaves nothing to merge", "merge=none trains it")


def patience(config: Config, report: Report) -> None:
    """Early stopping counts evaluations, so there must be some on the way."""
    trainer = config["trainer"]
    if trainer["patience"] is not None and trainer["eval_every"] is None:
        what = "trainer.patience counts evaluations, but trainer.eval_every=null makes none before the end"
        report.add("trainer.patience", what, "set trainer.eval_every")
    if trainer["patience"] is not None and trainer["select"] == "last":
        what = "trainer.patience waits for a better checkpoint, and trainer.select=last takes the last one"
        report.add("trainer.patience", what, "leave one of the two out")


def ema_decay(config: Config, report: Report) -> None:
    """A decay of 1 would never change the average."""
    if config["trainer"]["ema"] == 1:
        report.add("trainer.ema", "trainer.ema=1 would keep the initial weights for ever", "such as trainer.ema=0.999")


def heads(config: Config, report: Report) -> None:
    """A head must be of the kind of the task it serves."""
    for name in _chosen(config):
        task = config["mixture"]["tasks"][name]
        head, kind = task.get("head"), constant(task["_target_"], "kind")
        if isinstance(head, Mapping) and head.get("_target_"):
            _head_kind(f"mixture.tasks.{name}.head", head, kind, report)
    for kind in ("dense", "pooled", "token"):
        head = config["architecture"].get(f"{kind}_head")
        if isinstance(head, Mapping) and head.get("_target_"):
            _head_kind(f"architecture.{kind}_head", head, kind, report)


def given_baseline(config: Config, report: Report) -> None:
    """A baseline that is given must be there and have numbers for the tasks."""
    given = config.get("baseline")
    if given in (None, "auto", "none"):
        return
    try:
        read_baseline(given, _chosen(config), config["trainer"]["final_split"] or "validation")
    except UserError as error:
        for problem in error.problems:
            report.add("baseline", problem.what, problem.hint)


def one_data_set(config: Config, report: Report) -> None:
    """MT-AdamW normalises the gradient of one data set."""
    if config["optimizer"]["_target_"] != "runner.training.mt_adamw.mt_adamw":
        return
    sampler, sources = config["sampler"], config["mixture"].get("sources") or {}
    hint = "choose a sampler that draws one: sampler=proportional"
    if isinstance(sampler.get("draws"), int) and sampler["draws"] != 1:
        what = f"optimizer=mt_adamw needs steps of one data set, but sampler.draws={sampler['draws']}"
        report.add("sampler.draws", what, "sampler.draws=1")
    elif sampler["_target_"] == "runner.mixtures.samplers.All" and len(sources) > 1:
        what = f"optimizer=mt_adamw needs steps of one data set, but sampler=all draws all {len(sources)}"
        report.add("sampler", what, hint, see="runner ls sampler")


def _head_kind(path: str, head: Config, kind: str | None, report: Report) -> None:
    makes = constant(head["_target_"], "kind")
    if kind and makes and kind != makes:
        what = f"'{path}' must be a head of kind {kind}, but {head['_target_']} is one of kind {makes}"
        report.add(path, what, see="runner ls head")


def _chosen(config: Config) -> list[str]:
    """The names of the tasks that are trained."""
    tasks = config["mixture"].get("tasks") or {}
    chosen = config.get("tasks")
    return [name for name in tasks if chosen is None or name in chosen]


def launch_settings(config: Config, report: Report) -> None:
    """Settings of the queue mean nothing here, those of the local pool nothing in the queue."""
    launch, defaults = config["launch"], section_defaults("launch")
    if launch["scheduler"] == "local":
        for key, value in launch["slurm"].items():
            if key in defaults["slurm"] and value != defaults["slurm"][key]:
                what = f"launch.slurm.{key} has no effect on jobs that run on this machine"
                report.add(f"launch.slurm.{key}", what, "submit them with launch=slurm")
        return
    hints = {
        "jobs": "launch.slurm.max_parallel limits how many jobs run at a time",
        "gpus_per_job": "launch.slurm.gpus asks for GPUs",
        "keep_going": "the jobs of an array do not know of one another",
    }
    for key, hint in hints.items():
        if launch[key] != defaults[key]:
            report.add(f"launch.{key}", f"launch.{key} has no effect on jobs that Slurm runs", hint)
    if launch["num_processes"] % launch["slurm"]["nodes"]:
        what = f"launch.num_processes={launch['num_processes']} cannot be divided by launch.slurm.nodes"
        report.add("launch.num_processes", f"{what}={launch['slurm']['nodes']}", "each node runs as many of them")


def _list(values: list[Any]) -> str:
    return f"[{','.join(map(str, values))}]"


CHECKS: tuple[tuple[tuple[str, ...], Callable[[Config, Report], None]], ...] = (
    (("mixture._target_", "backbone._target_"), input_kinds),
    (("trainer.batch_size", "trainer.accumulation", "launch.num_processes"), batch_split),
    (("trainer.max_steps", "trainer.epochs"), length),
    (("trainer.precision", "launch.device"), half_precision),
    (("mixture.tasks", "tasks"), task_selection),
    (("mixture.tasks", "tasks", "trainer.select"), selection_metric),
    (("trainer.patience", "trainer.eval_every", "trainer.select"), patience),
    (("trainer.ema",), ema_decay),
    (("name",), run_name),
    (("launch",), launch_settings),
    (("finetune", "backbone", "init"), fitted_heads),
    (("merge", "mixture.tasks", "tasks", "architecture"), merge_launch),
    (("merge", "merging", "mixture.tasks", "tasks"), merge_subsets),
    (("mixture.tasks", "architecture"), heads),
    (("weighting", "architecture._target_", "trainer", "launch.num_processes"), weighting_mode),
    (("weighting._target_", "trainer.log_losses"), log_losses),
    (("weighting._target_", "trainer.batch_size", "trainer.accumulation", "launch.num_processes"), batch_parts),
    (("mixture.tasks", "tasks", "baseline", "trainer.final_split"), given_baseline),
    (("wrapper._target_", "weighting", "trainer"), wrapper_fit),
    (("wrapper._target_", "architecture._target_"), wrapper_architecture),
    (("architecture._target_", "trainer.sync_batchnorm"), slimmable_statistics),
    (("optimizer._target_", "sampler", "mixture"), one_data_set),
)
"""Each check with the keys it reads."""


def check_data(config: Config) -> list[Problem]:
    """Ask the mixture whether its data is there and fits its tasks; imports no torch, opens no data."""
    try:
        mixture = build(config["mixture"], config["data_root"], where="mixture")
        return list(mixture.check())
    except UserError as error:
        return error.problems
