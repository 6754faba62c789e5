"""The keys of a configuration that are the runner's own: top level, trainer, tracking, launch, and those of `eval`.

The sections of components (`_target_`) have no schema here: their keys are the keyword-only parameters of what they
name. Both kinds are checked by the same reader of annotations (`runner.config.static`), so write plain annotations.
Defaults stand here and in the YAML of the group; a test keeps them equal.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from runner.config.kinds import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

COMPONENTS = (
    "mixture",
    "sampler",
    "backbone",
    "architecture",
    "adapter",
    "weighting",
    "wrapper",
    "merge",
    "optimizer",
    "scheduler",
)
"""Top-level sections of `runner train` that name a component with `_target_`."""

OPTIONAL_COMPONENTS = ("adapter", "wrapper", "merge")
"""Those whose `_target_` may be null: no such component."""


@dataclass(frozen=True)
class TrainerConfig:
    """`trainer`: the settings of the loop; `configs/trainer/default.yaml` explains each."""

    max_steps: PositiveInt | None = 1000
    epochs: PositiveInt | None = None
    batch_size: PositiveInt = 16
    accumulation: PositiveInt = 1
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    clip_norm: PositiveFloat | None = None
    log_losses: bool = False
    ema: Fraction | None = None
    compile: bool = False
    channels_last: bool = False
    eval_every: PositiveInt | None = 250
    eval_batch_size: PositiveInt | None = None
    select: str = "auto"
    patience: PositiveInt | None = None
    checkpoint_every: PositiveInt | None = 250
    keep: PositiveInt = 2
    nonfinite: Literal["stop", "skip"] = "stop"
    num_workers: NonNegativeInt = 2
    log_every: PositiveInt = 10
    deterministic: bool = False
    sync_batchnorm: bool = False
    panels: NonNegativeInt = 8
    final_split: Literal["test", "validation"] | None = "test"


@dataclass(frozen=True)
class FinetuneConfig:
    """`finetune`: how weights move away from where they start; `configs/finetune/full.yaml` explains each."""

    mode: Literal["full", "linearized"] = "full"
    heads: Literal["train", "probe", "probe_train"] = "train"
    decay: NonNegativeFloat = 1e-3


@dataclass(frozen=True)
class MergingConfig:
    """`merging`: what `runner train merge=…` does around the strategy; `configs/merging/default.yaml` explains each."""

    scales: list[float] | None = field(
        default_factory=lambda: [0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.25, 1.5]
    )
    examples: PositiveInt | None = 400
    experts: dict[str, list[str]] | None = None
    per_task: bool = True
    apart: bool = False
    adapt: Literal["train", "validation", "test"] = "train"
    adapt_examples: PositiveInt | None = 1000
    diagnostics: list[Literal["vectors", "layers", "barrier", "disentanglement"]] = field(
        default_factory=lambda: ["vectors", "layers"]
    )


@dataclass(frozen=True)
class InitConfig:
    """`init` as a mapping: the weights that another experiment ends with.

    Attributes:
        experiment: its name.
        seed: of that run; None takes this run's, so that every seed has a base of its own.
        overrides: changes of the experiment, as on the command line.
        config: its frozen configuration; filled in when the run is frozen.
    """

    experiment: str
    seed: NonNegativeInt | None = None
    overrides: list[str] = field(default_factory=list)
    config: dict[str, Any] | None = None


@dataclass(frozen=True)
class WandbConfig:
    """`tracking.wandb`."""

    mode: Literal["offline", "online", "disabled"] = "offline"
    project: str = "runner"
    entity: str | None = None
    tags: list[str] = field(default_factory=list)
    notes: str | None = None


@dataclass(frozen=True)
class TrackingConfig:
    """`tracking`: where numbers go besides metrics.jsonl, and how the console looks."""

    wandb: WandbConfig = field(default_factory=WandbConfig)
    console: Literal["auto", "rich", "lines", "quiet"] = "auto"
    log_every: PositiveInt = 50
    plots: bool = True


@dataclass(frozen=True)
class SlurmConfig:
    """`launch.slurm`: what is asked of Slurm; `configs/launch/slurm.yaml` explains each."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time: str | PositiveInt | None = None
    memory: str | None = None
    nodes: PositiveInt = 1
    cpus: PositiveInt | None = None
    gpus: PositiveInt | str | None = None
    max_parallel: PositiveInt | None = None
    max_attempts: PositiveInt = 20
    grace: PositiveInt = 120
    setup: list[str] = field(default_factory=list)
    container: str | None = None
    python: str | None = None
    extra: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class LaunchConfig:
    """`launch`: processes and devices, and where jobs run."""

    scheduler: Literal["local", "slurm"] = "local"
    num_processes: PositiveInt = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    port: PositiveInt | None = None
    threads: PositiveInt | None = None
    jobs: PositiveInt = 1
    gpus_per_job: NonNegativeInt | None = None
    keep_going: bool = True
    slurm: SlurmConfig = field(default_factory=SlurmConfig)


@dataclass(frozen=True)
class TrainKeys:
    """The plain top-level keys of `runner train`."""

    name: str | None = None
    seed: NonNegativeInt = 0
    tasks: list[str] | None = None
    data_root: str = "data"
    output_dir: str = "outputs"
    run_dir: str | None = None
    sweep_dir: str | None = None
    plugins: list[str] = field(default_factory=list)
    init: str | dict[str, Any] | None = None
    baseline: str | dict[str, dict[str, float]] | None = None
    reference: dict[str, dict[str, float]] | None = None


@dataclass(frozen=True)
class EvalKeys:
    """The plain top-level keys of `runner eval`; `configs/eval.yaml` explains each."""

    run: str
    checkpoint: str | PositiveInt = "best"
    split: Literal["test", "validation"] = "test"
    batch_size: PositiveInt | None = None
    num_workers: NonNegativeInt = 0
    panels: NonNegativeInt = 8
    data_root: str | None = None
    output_dir: str = "outputs"
    run_dir: str | None = None


@dataclass(frozen=True)
class TuneConfig:
    """`tune`: the settings of `runner tune`; `configs/tune.yaml` explains each."""

    sampler: Literal["tpe", "random", "grid", "nsga2"] = "tpe"
    objective: str | list[str] = "relative"
    pruner: Literal["none", "median", "hyperband"] = "none"
    trials: PositiveInt | None = None
    hours: PositiveFloat | None = None
    startup: PositiveInt = 10
    seed: NonNegativeInt = 0
    retries: NonNegativeInt = 1
    driver: Literal["here", "slurm"] = "here"
    dir: str | None = None


@dataclass(frozen=True)
class MergeKeys:
    """The plain top-level keys of `runner merge`; `configs/merge.yaml` explains each."""

    models: list[str]
    out: str
    base: str | None = None
    names: list[str] | None = None
    include: list[str] = field(default_factory=list)
    exclude: list[str] = field(default_factory=list)
    dtype: Literal["base", "float32", "bfloat16", "float16"] = "base"
    embed: Literal["error", "base", "union"] = "error"
    batchnorm: Literal["keep", "average", "reestimate"] = "keep"
    shard_size: PositiveFloat = 5.0
    threads: PositiveInt | None = None
    memory: PositiveFloat = 0.75
    plugins: list[str] = field(default_factory=list)


SECTIONS: dict[str, type] = {
    "trainer": TrainerConfig,
    "finetune": FinetuneConfig,
    "merging": MergingConfig,
    "tracking": TrackingConfig,
    "launch": LaunchConfig,
}
"""Sections without a `_target_`."""


def merge_defaults() -> dict[str, Any]:
    """The default values of the plain keys of `runner merge`."""
    return {k: v for k, v in asdict(MergeKeys(models=[], out="")).items() if k not in ("models", "out")}


def section_defaults(section: str) -> dict[str, Any]:
    """The default values of a section, as plain python."""
    return asdict(SECTIONS[section]())
