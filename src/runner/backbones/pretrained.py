"""Networks from transformers: built from a preset, or loaded from a checkpoint (tensors only, no remote code).

Everything goes through `AutoConfig` and an auto model class. A hub id is first resolved to a local directory, so that
loading never retries over a dead network and the errors are ours. (`AutoBackbone.from_pretrained` of transformers
5.x asks the hub about local directories as well, therefore image backbones use `AutoModel` and its hidden states.)
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as hf_logging

from runner.backbones.hub import is_safe, local_checkpoint, local_config
from runner.errors import Problem, UserError, first_line, suggest

log = logging.getLogger(__name__)

Presets = Mapping[Any, Mapping[str, Any]]
"""size → the configuration values that decide the shape of the trunk at that size."""


def make_trunk(
    family: str,
    presets: Presets,
    size: str | int | None,
    pretrained: str | None,
    *,
    settings: Mapping[str, Any],
    scratch: Mapping[str, Any] | None = None,
    ignore: Sequence[str] = (),
    auto: Any = AutoModel,
    **model_arguments: Any,
) -> PreTrainedModel:
    """A transformers model of one family.

    Args:
        family: its `model_type`, such as "bert".
        presets: size → the configuration values that make up that published (or tiny) size.
        size: one of `presets`; with a checkpoint it is a claim that is checked, or None for "whatever it has".
        pretrained: hub id or local directory; None initialises from the global torch generator.
        settings: configuration values that hold in both cases (dropout, attention, …); None values are left out.
        scratch: configuration values used without a checkpoint only (vocabulary size, …).
        ignore: patterns of checkpoint tensors that are dropped on purpose (poolers, pre-training heads).
        auto: the auto class that builds the model.
        model_arguments: for the model's constructor.

    Raises:
        UserError: there is no such checkpoint, or it does not fit.
    """
    settings = {key: value for key, value in settings.items() if value is not None}
    attention = settings.pop("attn_implementation", None)
    arguments = dict(model_arguments) | ({"attn_implementation": attention} if attention else {})
    if pretrained is None:
        if size is None:
            raise UserError(
                "backbone.size=null takes the size of a checkpoint, and backbone.pretrained is null",
                suggest("", presets),
            )
        config = AutoConfig.for_model(family, **{**presets[size], **(scratch or {}), **settings})
        return auto.from_config(config, **arguments)
    check_size(read_config(local_config(pretrained), pretrained, family), presets, size, pretrained)
    directory = local_checkpoint(pretrained)
    config = read_config(directory, pretrained, family)
    config.update(settings)
    return load_weights(auto, directory, pretrained, config, ignore, arguments)


def read_config(directory: Path, pretrained: str, family: str) -> PretrainedConfig:
    """The checkpoint's configuration; its family is checked before anything is loaded."""
    try:
        found = json.loads((directory / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError) as error:
        raise UserError(f"backbone.pretrained={pretrained}: config.json cannot be read: {error}") from error
    if found != family:
        raise UserError(
            f"backbone.pretrained={pretrained} is a checkpoint of '{found}', this backbone is '{family}'",
            "choose the backbone of that family, or a checkpoint of this one",
            "runner ls backbone",
        )
    try:
        return AutoConfig.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:  # values that its class refuses, in whatever way
        raise UserError(
            f"backbone.pretrained={pretrained}: config.json does not hold: {first_line(error, 'no message')}"
        ) from error


def check_size(config: PretrainedConfig, presets: Presets, size: str | int | None, pretrained: str) -> None:
    """Refuse a checkpoint whose shape is not that of the configured size."""
    if size is None:
        return
    if wrong := _differences(config, presets[size]):
        fitting = [name for name, preset in presets.items() if not _differences(config, preset)]
        raise UserError(
            f"backbone.pretrained={pretrained} is not of backbone.size={size}: "
            + ", ".join(f"{key} is {have}, not {want}" for key, have, want in wrong),
            f"set backbone.size={fitting[0] if fitting else 'null'}"
            + ("" if fitting else " to take whatever the checkpoint has"),
        )


def _differences(config: PretrainedConfig, preset: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(key, in the checkpoint, in the preset) for keys that decide the shape of the trunk."""

    def plain(value: Any) -> Any:
        return list(value) if isinstance(value, tuple) else value

    pairs = [(key, plain(getattr(config, key, None)), plain(want)) for key, want in preset.items()]
    return [pair for pair in pairs if pair[1] != pair[2]]


def load_weights(
    auto: Any,
    directory: Path,
    pretrained: str,
    config: PretrainedConfig,
    ignore: Sequence[str],
    arguments: Mapping[str, Any],
) -> PreTrainedModel:
    """Load, and account for every tensor: all of the trunk's must come from the checkpoint, with their shapes."""
    try:
        with quiet():
            model, report = auto.from_pretrained(
                directory,
                config=config,
                dtype=torch.float32,
                use_safetensors=is_safe(directory),
                weights_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below, in our words
                **arguments,
            )
    except Exception as error:  # whatever a damaged file makes transformers or safetensors raise
        why = first_line(error, "no message")
        raise UserError(f"backbone.pretrained={pretrained} cannot be loaded: {type(error).__name__}: {why}") from error
    problems = []
    if mismatched := sorted(report["mismatched_keys"]):
        name, have, want = mismatched[0]
        problems.append(
            Problem(
                f"backbone.pretrained={pretrained}: {len(mismatched)} tensors have another shape than its config.json "
                f"says, first {name}: {tuple(have)} instead of {tuple(want)}"
            )
        )
    if missing := sorted(report["missing_keys"]):
        problems.append(
            Problem(
                f"backbone.pretrained={pretrained} lacks {len(missing)} of the trunk's tensors: {_some(missing)}",
                "the checkpoint is incomplete or belongs to another kind of model",
            )
        )
    if problems:
        raise UserError(problems)
    unused = sorted(report["unexpected_keys"])
    surprising = [key for key in unused if not any(re.search(pattern, key) for pattern in ignore)]
    total = len(model.state_dict())
    log.info("backbone: %d tensors from %s; left out: %s", total, pretrained, _some(unused) or "none")
    if surprising:
        log.warning("backbone: %s also holds tensors this backbone has no place for: %s", pretrained, _some(surprising))
    return model


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' progress bar and its own report of unused tensors off the console."""
    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()


def _some(names: Sequence[str], limit: int = 4) -> str:
    return ", ".join(names[:limit]) + (f", … ({len(names)} in all)" if len(names) > limit else "")


def checked_drop_path(drop_path: float | None) -> float | None:
    """The checked value of a `drop_path` key: 1 would drop every residual branch and divide by zero."""
    if drop_path is not None and drop_path >= 1.0:
        raise UserError(f"backbone.drop_path={drop_path} must stay below 1", "published settings use 0.1 to 0.4")
    return drop_path


def attention_choice(attention: str) -> str | None:
    """The `attention` key in transformers' words; "auto" lets it choose."""
    return None if attention == "auto" else attention
