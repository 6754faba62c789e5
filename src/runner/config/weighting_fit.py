"""Settings that a weighting cannot work in: said before anything starts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from runner.config.source import constant
from runner.config.static import Report

Config = Mapping[str, Any]


def weighting_mode(config: Config, report: Report) -> None:
    """Where `weighting.mode` takes its gradients must exist and be complete."""
    weighting, trainer = config["weighting"], config["trainer"]
    mode = weighting.get("mode") or constant(weighting["_target_"], "mode")
    if mode == "gram" and (trainer["accumulation"] > 1 or config["launch"]["num_processes"] > 1):
        report.add(
            "weighting.mode",
            f"weighting.mode=gram works with trainer.accumulation=1 and launch.num_processes=1, not with "
            f"{trainer['accumulation']} and {config['launch']['num_processes']}: the inner products of gradients need "
            "whole gradients",
            "weighting.mode=parameters is exact in every setting",
        )
    if mode in ("gram", "representation") and trainer["compile"]:
        report.add(
            "weighting.mode",
            f"weighting.mode={mode} hooks the model's layers, which trainer.compile=true compiles away",
            "set trainer.compile=false, or weighting.mode=parameters",
        )
    if mode == "representation":
        if constant(config["architecture"]["_target_"], "representation") is None:
            report.add(
                "weighting.mode",
                "gradients of the shared representation need one trunk that all tasks share, which this architecture "
                "does not have",
                "use architecture=hard_sharing, or a weighting with mode=parameters",
                see="runner ls architecture",
            )
        if weighting.get("shared") is not None:
            what = "weighting.shared has no effect with weighting.mode=representation"
            report.add("weighting.shared", what, "the coefficients apply to the whole trunk: set weighting.shared=null")


def log_losses(config: Config, report: Report) -> None:
    """Logarithms may be negative, which not every weighting can take."""
    target = config["weighting"]["_target_"]
    if config["trainer"]["log_losses"] and constant(target, "log_losses") is False:
        name = target.rpartition(".")[2]
        what = f"trainer.log_losses=true does not go with {name}, which needs the losses themselves"
        report.add("trainer.log_losses", what, "set trainer.log_losses=false, or choose another weighting")


def batch_parts(config: Config, report: Report) -> None:
    """Methods that compare parts of a batch cut it into more micro-batches than `trainer.accumulation`."""
    shares = constant(config["weighting"]["_target_"], "parts") or (1,)
    if sum(shares) == 1:
        return
    trainer, processes = config["trainer"], config["launch"]["num_processes"]
    micro_batches = math.lcm(trainer["accumulation"], sum(shares))
    parts = micro_batches * processes
    if trainer["batch_size"] % parts:
        name = config["weighting"]["_target_"].rpartition(".")[2]
        lower = trainer["batch_size"] // parts * parts
        fitting = [n for n in (lower, lower + parts) if n > 0]
        report.add(
            "trainer.batch_size",
            f"{name} compares parts of a batch and cuts it into {micro_batches} micro-batches on {processes} "
            f"process{'es' if processes > 1 else ''}: trainer.batch_size={trainer['batch_size']} cannot be divided so",
            f"such as trainer.batch_size={' or '.join(map(str, fitting))}",
        )


def wrapper_fit(config: Config, report: Report) -> None:
    """What a wrapper does to a step must leave the weighting what it needs."""
    wrapper, weighting, trainer = config["wrapper"]["_target_"], config["weighting"], config["trainer"]
    if wrapper is None:
        return
    name, method = wrapper.rpartition(".")[2], weighting["_target_"].rpartition(".")[2]
    mode = weighting.get("mode") or constant(weighting["_target_"], "mode") or "parameters"
    ready_made, twice = constant(wrapper, "one_backward"), constant(wrapper, "second_derivatives")
    inside = constant(wrapper, "looks_inside")
    if (ready_made or twice or inside) and mode != "parameters":
        what = f"{name} needs the gradients of the parameters, but {method} has mode={mode}"
        hint = "set weighting.mode=parameters" if "mode" in weighting else "choose another weighting, or wrapper=none"
        report.add("wrapper", what, hint, see="runner ls weighting")
    if ready_made and sum(constant(weighting["_target_"], "parts") or (1,)) > 1:
        what = f"{name} makes one gradient per task and step, but {method} compares those of parts of the batch"
        report.add("wrapper", what, "choose another weighting, or wrapper=none", see="runner ls weighting")
    if ready_made and trainer["log_losses"]:
        what = f"trainer.log_losses=true does not go with {name}, which moves the weights for every task's loss"
        report.add("trainer.log_losses", what, "set trainer.log_losses=false, or wrapper=none")
    if twice and trainer["compile"]:
        what = f"trainer.compile=true cannot take the second derivatives that {name} needs"
        report.add("trainer.compile", what, "trainer.compile=false, or wrapper=none")
    if constant(wrapper, "changes_structure") and trainer.get("ema"):
        what = f"trainer.ema averages weights over steps between which {name} changes what they stand for"
        report.add("trainer.ema", what, "trainer.ema=null, or wrapper=none")
    if inside and trainer["compile"]:
        what = f"trainer.compile=true hides what {name} looks at between the model's layers"
        report.add("trainer.compile", what, "trainer.compile=false, or wrapper=none")


def slimmable_statistics(config: Config, report: Report) -> None:
    """Layers of several widths keep statistics of their own, which torch's synchronised BatchNorm does not know."""
    if config["architecture"]["_target_"].endswith(".Slimmable") and config["trainer"]["sync_batchnorm"]:
        what = "trainer.sync_batchnorm=true replaces layers that architecture=slimmable runs at several widths"
        report.add("trainer.sync_batchnorm", what, "set it to false, and backbone.norm=group for small local batches")


def wrapper_architecture(config: Config, report: Report) -> None:
    """A wrapper that completes one architecture goes with no other."""
    wrapper = config["wrapper"]["_target_"]
    needed = None if wrapper is None else constant(wrapper, "architecture")
    if needed is not None and config["architecture"]["_target_"].split(".")[-2] != needed:
        name = wrapper.rpartition(".")[2]
        report.add(
            "wrapper", f"{name} works with architecture={needed} only", f"architecture={needed}, or wrapper=none"
        )
