"""What all text backbones share: vocabulary checks, and one vector per example from its tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from runner.backbones.base import Backbone
from runner.backbones.pretrained import Presets, attention_choice, make_trunk
from runner.errors import UserError
from runner.specs import FeatureSpec, InputSpec
from runner.types import Features

Pooling = Literal["first", "mean", "last"]


class TextBackbone(Backbone):
    """input_ids and attention_mask (B, T), padded on the right → tokens (B, T, D), mask and pooled (B, D).

    Args:
        trunk: a transformers model whose output has `last_hidden_state`.
        pooling: "first" token ([CLS]), "mean" over the real tokens, or "last" real token (causal models).
        pretrained: for messages.
    """

    serves = ("pooled", "token")

    def __init__(self, inputs: InputSpec, trunk: nn.Module, pooling: Pooling, pretrained: str | None) -> None:
        super().__init__()
        self.trunk: Any = trunk
        self.pooling = pooling
        check_fit(inputs, trunk.config, pretrained)
        self.spec = FeatureSpec(dim=trunk.config.hidden_size)

    def forward(self, inputs: dict[str, Tensor]) -> Features:
        """Features of `inputs["input_ids"]` under `inputs["attention_mask"]`."""
        mask_BT = inputs["attention_mask"]
        tokens_BTD = self.encode(inputs["input_ids"], mask_BT)
        real_BT = mask_BT.bool()
        pooled_BD = pool(tokens_BTD, real_BT, self.pooling) if "pooled" in self.wanted else None
        return Features(tokens=tokens_BTD, mask=real_BT, pooled=pooled_BD)

    def encode(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """(B, T) → (B, T, D)."""
        return self.trunk(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state


def pool(tokens_BTD: Tensor, real_BT: Tensor, pooling: Pooling) -> Tensor:
    """One vector per example; padding takes no part."""
    if pooling == "first":
        return tokens_BTD[:, 0]
    if pooling == "last":
        last_B = real_BT.sum(1).clamp(min=1) - 1
        return tokens_BTD[torch.arange(len(tokens_BTD), device=tokens_BTD.device), last_B]
    weight_BT1 = real_BT.unsqueeze(-1).to(tokens_BTD.dtype)
    return (tokens_BTD * weight_BT1).sum(1) / weight_BT1.sum(1).clamp(min=1)


def make_text_trunk(
    inputs: InputSpec,
    family: str,
    presets: Presets,
    size: str | None,
    pretrained: str | None,
    *,
    dropout: float | None,
    dropout_keys: Sequence[str],
    attention: str = "auto",
    positions: int | None = None,
    scratch: Mapping[str, Any] | None = None,
    ignore: Sequence[str] = (),
    **options: Any,
) -> Any:
    """A transformers text model whose vocabulary and padding are those of the mixture's tokenizer.

    Args:
        dropout_keys: what this family calls its dropouts; all get `dropout`, None keeps the published values.
        positions: of the published model; from scratch there are more where the mixture's texts are longer.
        scratch: further configuration values used without a checkpoint only.
        ignore, options: as in `make_trunk`.
    """
    if inputs.kind != "text":
        raise UserError(f"this backbone reads text, the mixture feeds it {inputs.kind}", see="runner ls backbone")
    if inputs.vocab_size is None or inputs.pad_token_id is None:
        lacks = "a vocabulary" if inputs.vocab_size is None else "a padding token"
        raise UserError(
            f"this backbone needs {lacks}, and the mixture's tokenizer says nothing of one",
            "name another tokenizer: mixture.tokenizer=DIR; a mixture of your own says vocab_size and pad_token_id in "
            "its setup",
        )
    own = {"vocab_size": inputs.vocab_size, "pad_token_id": inputs.pad_token_id, **(scratch or {})}
    if positions is not None:
        own["max_position_embeddings"] = max(positions, inputs.max_length or 0)
    settings = {**dict.fromkeys(dropout_keys, dropout), "attn_implementation": attention_choice(attention)}
    return make_trunk(family, presets, size, pretrained, settings=settings, scratch=own, ignore=ignore, **options)


def check_fit(inputs: InputSpec, config: Any, pretrained: str | None) -> None:
    """Refuse a trunk with fewer embeddings than the tokenizer has tokens, or fewer positions than a text may have."""
    where = f"backbone.pretrained={pretrained}" if pretrained else "this backbone"
    if config.vocab_size < (inputs.vocab_size or 0):
        raise UserError(
            f"{where} knows {config.vocab_size} tokens, the mixture's tokenizer makes {inputs.vocab_size}",
            "use the checkpoint's own tokenizer, or backbone.pretrained=null",
        )
    positions = positions_of(config)
    if positions is not None and inputs.max_length is not None and inputs.max_length > positions:
        raise UserError(
            f"{where} has {positions} positions, the mixture's texts have up to {inputs.max_length} tokens",
            f"set mixture.max_length={positions}",
        )


def preset(width: int, layers: int, heads: int, feed_forward: int | None = None) -> dict[str, int]:
    """The shape of a BERT-like model, in the words most families use; the feed-forward width defaults to 4 × width."""
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": feed_forward or 4 * width,
    }


def positions_of(config: Any) -> int | None:
    """Longest text in tokens; None where positions are relative and unlimited."""
    if config.model_type in ("t5", "deberta-v2"):
        return None
    count = config.max_position_embeddings
    return count - config.pad_token_id - 1 if config.model_type == "roberta" else count
