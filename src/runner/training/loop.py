"""The training loop, from the frozen configuration to result.json. Read it from top to bottom.

One optimizer step: draw the step's micro-batches, count their labels over all processes, run each forward, hand the
loss sums to the weighting engine, let it leave the weighted gradient in `.grad`, clip, step. Everything that the next
step depends on is in the checkpoint, so that a run which was killed and resumed ends in the same bits.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import torch
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from runner.config.build import build
from runner.config.schema import TrainerConfig
from runner.config.signature import weights_part
from runner.errors import EXIT_DONE, EXIT_STOPPED
from runner.launching.rundir import RunDirectory
from runner.launching.signals import StopFlag
from runner.mixtures.stream import Stream, steps_per_epoch
from runner.randomness import rng_state, set_rng_state
from runner.tracking import Tracker
from runner.training.assemble import Parts, assemble, counted_as_shared, has_batchnorm, trainable
from runner.training.averages import Averages
from runner.training.checkpoints import Checkpoints, check_inputs, load_weights
from runner.training.evaluate import evaluate_parts
from runner.training.forward import Forward
from runner.training.kept import keep_inputs
from runner.training.look_ahead import LookAhead, label_counts
from runner.training.mt_adamw import MTAdamW
from runner.training.nonfinite import NonFinitePolicy, report_nonfinite
from runner.training.processes import Processes
from runner.training.result import write_result
from runner.training.second_forward import second_losses
from runner.training.selection import Selection
from runner.training.start import start
from runner.training.wrappers.base import Surroundings, Wrapper
from runner.weighting.base import MODES
from runner.weighting.engine import Engine
from runner.weighting.step import NonFiniteLoss


def train(run: RunDirectory, stop: StopFlag) -> int:
    """Train, or continue, the run in `run.path`; returns the exit code.

    Raises:
        UserError: the data or a component is not what the configuration says.
        RunFailed: a loss is not finite, or a checkpoint cannot be written.
    """
    started = time.perf_counter()
    config = run.config()
    settings = TrainerConfig(**config["trainer"])
    seed: int = config["seed"]

    # ---- processes, device, precision ---------------------------------------------------------------------------
    processes = Processes.start(config["launch"], settings.precision)
    accelerator, device = processes.accelerator, processes.device
    if settings.deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False

    # ---- data, model, method ------------------------------------------------------------------------------------
    parts = assemble(config)
    start(parts, run)
    model, tasks = parts.model.to(device), parts.tasks
    if settings.channels_last:
        model = model.to(memory_format=torch.channels_last)  # activations follow the weights
    train_sets, validation_sets = parts.mixture.datasets("train"), parts.mixture.datasets("validation")
    weighting = build(config["weighting"], tasks, where="weighting").to(device)
    reach = counted_as_shared(parts, weighting)
    accumulation = math.lcm(settings.accumulation, sum(weighting.parts))  # micro-batches of a step
    if settings.sync_batchnorm and processes.count > 1:
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    processes.broadcast(model)
    forward = Forward(
        torch.compile(model) if settings.compile else model, tasks, device, accelerator.autocast, weighting.per_example
    )
    ema = (
        AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(settings.ema), use_buffers=True)
        if settings.ema
        else None
    )
    wrapper: Wrapper = build(config.get("wrapper"), weighting, where="wrapper") or Wrapper(weighting)
    wrapper.prepare(model, tasks, parts.inputs)
    forward = wrapper.to(device).losses(forward)
    sampler = build(config["sampler"], {name: len(d) for name, d in train_sets.items()}, where="sampler")

    per_epoch = steps_per_epoch({name: len(d) for name, d in train_sets.items()}, sampler, settings.batch_size)
    total_steps = settings.max_steps or per_epoch * int(settings.epochs or 1)
    optimizer = build(config["optimizer"], model, where="optimizer")
    model_groups = len(optimizer.param_groups)
    shares = sampler.shares() if isinstance(optimizer, MTAdamW) else {}
    if isinstance(optimizer, MTAdamW):
        optimizer.check(shares, len(sampler.draw(0, seed)))
    for group in [*weighting.parameter_groups(), *wrapper.parameter_groups()]:
        optimizer.add_param_group(group)
    scheduler = build(config["scheduler"], optimizer, total_steps, where="scheduler")
    scaler = accelerator.scaler  # of fp16 only
    if scaler is not None:
        scaler.scale(torch.zeros((), device=device))  # it makes its state on first use
    engine = Engine(
        weighting,
        trainable(model),
        reach,
        micro_batches=1 if wrapper.one_backward else accumulation,
        reduce=processes.reduce,
        device=device,
        loss_scale=scaler.get_scale if scaler is not None else lambda: 1.0,
        model=model,
        log=settings.log_losses,
        skippable=scaler is not None or settings.nonfinite == "skip",
    )
    wrapper.attach(
        Surroundings(
            model, forward, engine, train_sets, parts.inputs,
            settings.eval_batch_size or settings.batch_size, processes.rank, processes.count, processes.reduce,
        )
    )  # fmt: skip

    # ---- from the last checkpoint, if there is one --------------------------------------------------------------
    checkpoints = Checkpoints(
        run.path / "checkpoints", keep=settings.keep, rank=processes.rank, barrier=accelerator.wait_for_everyone
    )
    averages = Averages(list(tasks))
    selection = Selection(settings.select, tasks, settings.patience)
    step, examples, train_s, wall_s, stream_state, finished = 0, 0, 0.0, 0.0, None, False
    waited_s = 0.0  # of train_s, for data
    torch.manual_seed(seed + processes.rank)  # dropout differs between ranks
    newest = checkpoints.newest()
    loaded = checkpoints.load(newest) if newest is not None else None
    if loaded is not None:
        check_inputs(loaded.path, parts.inputs)
        load_weights(model, loaded.path / "model.safetensors")
        if ema is not None:
            load_weights(ema, loaded.path / "ema.safetensors")
        optimizer.load_state_dict(loaded.training["optimizer"])
        scheduler.load_state_dict(loaded.training["scheduler"])
        weighting.load_state_dict(loaded.training["weighting"])
        wrapper.load_state_dict(loaded.training["wrapper"])
        if scaler is not None:
            scaler.load_state_dict(loaded.training["scaler"])
        averages.load_state_dict(loaded.state["averages"])
        selection.load_state_dict(loaded.state["selection"])
        step, examples, train_s = loaded.state["step"], loaded.state["examples"], loaded.state["train_s"]
        waited_s = loaded.state.get("waited_s", 0.0)  # checkpoints of older versions lack it
        wall_s, stream_state, finished = loaded.state["wall_s"], loaded.state["stream"], loaded.state["finished"]
        if processes.main:
            checkpoints.link(step, selection.best_step)  # the kill may have come between a checkpoint and its links

    tracker: Tracker | None = None
    attempt = run.begin_attempt(step) if processes.main else 0
    if processes.main:
        keep_inputs(run.path, parts.mixture, parts.inputs)
        info = run.info()
        tracker = Tracker(
            run.path, config, attempt, info["wandb_id"], step, group=info.get("sweep"), role=info.get("role")
        )
        tracker.message(_opening(step, total_steps, newest, parts))
        if weighting.mode in MODES:
            tracker.message(f"weighting.mode={weighting.mode}: {MODES[weighting.mode]}")
        if accumulation != settings.accumulation:
            tracker.message(f"each step is cut into {accumulation} micro-batches: the weighting compares parts of it")
    notice = tracker.notice if tracker is not None else lambda text: None
    if len(train_sets) > 1 and has_batchnorm(model):
        notice(
            f"BatchNorm will mix the statistics of {len(train_sets)} data sets, so evaluation can be far worse than "
            "training: a backbone with norm=group, norm=frozen or LayerNorm avoids it"
        )
    nonfinite = NonFinitePolicy(settings.nonfinite == "stop", run.path, notice)
    if loaded is not None:
        nonfinite.skipped, nonfinite.in_a_row = loaded.state["skipped"]
    stream = Stream(
        train_sets,
        sampler,
        batch_size=settings.batch_size,
        accumulation=accumulation,
        rank=processes.rank,
        world_size=processes.count,
        seed=seed,
        num_workers=settings.num_workers,
        pad_token_id=parts.inputs.pad_token_id,
        pin_memory=device.type == "cuda",
        start=stream_state,
        device=device,
    )

    look_ahead = LookAhead.of(weighting, config, forward, model, engine, processes, accumulation, parts, loaded)

    def save() -> None:
        checkpoints.save(
            step,
            model=model,
            ema=ema,
            training={
                "optimizer": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(),
                "weighting": weighting.state_dict(),
                "wrapper": wrapper.state_dict(),
                "scaler": scaler.state_dict() if scaler is not None else {},
            },
            state={
                "step": step,
                "examples": examples,
                "train_s": train_s,
                "waited_s": waited_s,
                "wall_s": wall_s + time.perf_counter() - started,
                "stream": stream_state,
                "held_out": look_ahead.state if look_ahead is not None else None,
                "finished": finished,
                "skipped": [nonfinite.skipped, nonfinite.in_a_row],
                "averages": averages.state_dict(),
                "selection": selection.state_dict(),
                "inputs": parts.inputs.learned,
                "config": weights_part(config),
            },
            best_step=selection.best_step,
        )

    def validate() -> None:
        evaluated = ema if ema is not None else model
        processes.share_buffers(evaluated)
        results, panels = evaluate_parts(evaluated, validation_sets, parts, processes, settings)
        selection.update(step, results)
        if tracker is not None:
            tracker.scalars(step, "validation", results | selection.extra())
            tracker.panels(step, "validation", panels)

    # ---- the loop -----------------------------------------------------------------------------------------------
    exit_code = EXIT_DONE
    batches = iter(stream)
    if loaded is not None and loaded.rng is not None:
        set_rng_state(loaded.rng)  # last: building and opening things above has drawn numbers
    model.train()
    if loaded is None:
        wrapper.start()
    try:
        while step < total_steps and not finished:
            began = time.perf_counter()
            micro_batches, stream_after = next(batches)
            waited_s += time.perf_counter() - began
            counts = processes.reduce(label_counts(micro_batches, tasks).to(device))
            if look_ahead is not None:
                look_ahead.step(micro_batches, counts, optimizer.param_groups[0]["lr"], step // per_epoch)
            rng = rng_state() if weighting.wants_second_losses else None
            try:
                report = wrapper.gradients(micro_batches, counts, step, per_epoch)
            except NonFiniteLoss as error:
                report_nonfinite(run.path, step, error, micro_batches, processes)
                nonfinite.broken(
                    f"the loss of task '{', '.join(error.tasks)}' is not finite at step {step + 1}",
                    f"lower optimizer.lr or set trainer.clip_norm; the batch is in {run.path / 'nonfinite.json'}",
                )
                report = None

            if report is not None:
                if scaler is not None:
                    scaler.unscale_(optimizer)
                penalty = model.penalty()  # of the architecture, in no task's loss
                if penalty is not None and penalty.requires_grad:
                    penalty.backward()
                grads = [p.grad for p in engine.parameters if p.grad is not None]
                grad_norm = float(get_total_norm(grads)) if grads else 0.0
                if not math.isfinite(grad_norm) and scaler is None:
                    nonfinite.broken(
                        f"the gradient is not finite at step {step + 1}, though every loss is",
                        "lower optimizer.lr, or train with trainer.precision=fp32",
                    )
                    report = None
            if report is not None:
                nonfinite.whole()
                if isinstance(optimizer, MTAdamW):
                    drawn = micro_batches[0][0].name
                    optimizer.draw(drawn, shares[drawn])
                if settings.clip_norm is not None:
                    clip_grads_with_norm_(engine.parameters, settings.clip_norm, torch.tensor(grad_norm, device=device))
                if scaler is not None:
                    scaler.step(optimizer)  # skips a step whose gradient overflowed
                    scaler.update()
                else:
                    optimizer.step()
                if ema is not None:
                    ema.update_parameters(model)
                averages.add(report, grad_norm, time.perf_counter() - began)
                if rng is not None and math.isfinite(grad_norm):  # not after a step that fp16 scaling skipped
                    again = second_losses(forward, model, micro_batches, engine, rng)
                    if again.isfinite().all():  # if not, the next step's own losses tell
                        weighting.after_update(again, torch.tensor(engine.present, device=device))
            scheduler.step()
            step += 1
            stream_state = stream_after
            examples += sum(len(group) for batch in micro_batches for group in batch) * processes.count
            train_s += time.perf_counter() - began

            # ---- what a person and the disk get ------------------------------------------------------------------
            last = step == total_steps
            if tracker is not None and (step % settings.log_every == 0 or last):
                rate = {"examples_per_s": examples / train_s, "lr": max(scheduler.get_last_lr()[:model_groups])}
                tracker.scalars(step, "train", averages.means() | averages.between() | {"": averages.common() | rate})
                losses = {name: values["loss"] for name, values in averages.means().items()}
                tracker.progress(
                    step, total_steps, losses, rate["lr"], rate["examples_per_s"], train_s / step * (total_steps - step)
                )
            if step % settings.log_every == 0:
                averages.reset()
            stopping = processes.any(stop.requested) and not last
            evaluated = last or (settings.eval_every is not None and step % settings.eval_every == 0)
            if evaluated and not stopping:
                validate()
                finished = last or selection.exhausted
            due = settings.checkpoint_every is not None and step % settings.checkpoint_every == 0
            at_evaluation = evaluated and (settings.checkpoint_every is None or selection.best_step == step)
            if due or at_evaluation or finished or stopping:
                save()
            if stopping:
                exit_code = EXIT_STOPPED
                break

        # ---- the result ------------------------------------------------------------------------------------------
        if exit_code == EXIT_STOPPED:
            if tracker is not None:
                run.end_attempt("STOPPED", step, f"stopped by {stop.name}")
                tracker.message(f"stopped at step {step} of {total_steps} by {stop.name}")
        elif finished:
            best = checkpoints.find("best")
            chosen = ema if ema is not None else model
            load_weights(chosen, best / ("ema.safetensors" if ema is not None else "model.safetensors"))
            write_result(
                run, processes, parts, chosen, settings, selection, tracker,
                weighting=weighting, steps=step, skipped=nonfinite.skipped, examples=examples, train_s=train_s,
                waited_s=waited_s, wall_s=wall_s + time.perf_counter() - started,
            )  # fmt: skip
            if tracker is not None:
                tracker.plots()
                run.end_attempt("COMPLETED", step)
        return exit_code
    except BaseException:
        exit_code = 1
        raise
    finally:
        stream.close()
        if look_ahead is not None:
            look_ahead.close()
        if tracker is not None:
            tracker.close(exit_code)
        processes.end(together=exit_code in (EXIT_DONE, EXIT_STOPPED))


def _opening(step: int, total_steps: int, newest: Path | None, parts: Parts) -> str:
    if newest is not None:
        return f"continuing at step {step} of {total_steps} from {newest}"
    count = sum(p.numel() for p in trainable(parts.model))
    return f"training {count / 1e6:.2f} M parameters on {', '.join(parts.tasks)} for {total_steps} steps"
