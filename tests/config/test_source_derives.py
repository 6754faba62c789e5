"""What a class is derived from, read from its source."""

from __future__ import annotations

import sys

import pytest

from runner.config.paths import options
from runner.config.source import derives
from runner.config.static import BASES

SOURCE = """\
from abc import ABC
from elsewhere import Unknown
from runner.weighting.base import GradientWeighting as G
class Own(G): ...
class Grandchild(Own): ...
class Plain(ABC): ...
class Whatever(Unknown): ...
def make(): ...
"""


@pytest.mark.parametrize(
    ("name", "expected"),
    [("Own", True), ("Grandchild", True), ("Plain", False), ("Whatever", True), ("make", True)],
)
def test_a_users_classes(tmp_path, monkeypatch, name, expected):
    (tmp_path / f"derived_{name}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert derives(f"derived_{name}.{name}", "runner.weighting.base.Weighting") is expected
    assert f"derived_{name}" not in sys.modules


@pytest.mark.parametrize("group", [group for group in BASES if "." not in group])
def test_all_shipped_options(group):
    import yaml

    targets = {yaml.safe_load(option.path.read_text()).get("_target_") for option in options(group)} - {None}
    assert targets
    assert [target for target in targets if not derives(target, BASES[group])] == []
