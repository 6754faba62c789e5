"""Pooling of tokens."""

from __future__ import annotations

import pytest
import torch

from runner.backbones.gpt2 import GPT2
from runner.backbones.roberta import Roberta
from runner.backbones.text import pool
from runner.errors import UserError
from runner.specs import InputSpec
from tests.backbones.samples import SPECS, example


@pytest.mark.parametrize("pooling", ["first", "mean", "last"])
def test_pooling_against_a_loop(pooling):
    torch.manual_seed(0)
    tokens, lengths = torch.randn(4, 7, 3), [7, 1, 4, 6]
    real = torch.arange(7) < torch.tensor(lengths)[:, None]
    tokens[~real] = float("inf") if pooling == "last" else 1e3
    rows = []
    for example_tokens, length in zip(tokens, lengths, strict=True):
        words = example_tokens[:length]
        rows.append({"first": words[0], "mean": words.sum(0) / length, "last": words[-1]}[pooling])
    torch.testing.assert_close(pool(tokens, real, pooling), torch.stack(rows))


def test_a_causal_model_sees_no_later_token():
    torch.manual_seed(0)
    net = GPT2(SPECS["text"], size="tiny").eval()
    inputs = example("text", batch=1)
    changed = {**inputs, "input_ids": inputs["input_ids"].clone()}
    changed["input_ids"][0, 5] = (changed["input_ids"][0, 5] + 1) % 60
    before, after = net(inputs), net(changed)
    assert torch.equal(before.tokens[:, :5], after.tokens[:, :5])
    assert not torch.allclose(before.pooled, after.pooled)


@pytest.mark.parametrize("pad", [0, 1, 59])
def test_roberta_counts_positions_from_any_padding_id(pad):
    inputs = InputSpec("text", vocab_size=60, pad_token_id=pad, max_length=600)
    net = Roberta(inputs, size="tiny").eval()
    ids = torch.full((1, 600), 7)
    assert net({"input_ids": ids, "attention_mask": torch.ones_like(ids)}).tokens.isfinite().all()


def test_dropout_key_sets_every_dropout():
    net = Roberta(SPECS["text"], size="tiny", dropout=0.25)
    assert {m.p for m in net.modules() if isinstance(m, torch.nn.Dropout)} == {0.25}
    config = Roberta(SPECS["text"], size="tiny").trunk.config
    assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (0.1, 0.1)


def test_a_mixture_without_a_padding_token_is_told_what_lacks():
    """It used to be told that it feeds text to a backbone that reads text."""
    for given, lacks in (({"pad_token_id": 0}, "a vocabulary"), ({"vocab_size": 60}, "a padding token")):
        with pytest.raises(UserError, match=f"this backbone needs {lacks}"):
            GPT2(InputSpec("text", max_length=16, **given), size="tiny")
