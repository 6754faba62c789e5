"""Paths with any letters on the command line."""

from __future__ import annotations

import pytest

from runner.cli.hydra_value import readable
from runner.config.overrides import parse_one


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("run_dir=/daten/Läufe von heute", "/daten/Läufe von heute"),
        ("models=[Möwe, b ö,plain]", ["Möwe", "b ö", "plain"]),
        ("name='schon \"ü\" da'", 'schon "ü" da'),
        ("name=plain text", "plain text"),
        ("optimizer.lr=0.1", 0.1),
        ("out=データ/統合", "データ/統合"),
    ],
)
def test_letters_need_no_quotes(word, value):
    assert parse_one(readable(word)).value() == value


@pytest.mark.parametrize("word", ["seed=1", "ü", "x='ä'", "a={ü: 1}", "a=f(ü)"])
def test_what_is_left_alone(word):
    assert readable(word) == word


def test_several_values_stay_several():
    found = parse_one(readable("name=Ä,Ö"))
    assert found.is_sweep_override()
    assert list(found.sweep_string_iterator()) == ["'Ä'", "'Ö'"]
