"""What a dry run says of checkpoints that are not there."""

from __future__ import annotations

import pytest

from runner.config.compose import compose
from runner.config.freeze import finalize
from runner.errors import UserError
from runner.training.summary import near, print_summary
from tests.support import TINY


def test_a_size_that_only_the_checkpoint_knows(tmp_path, monkeypatch, capsys):
    """It used to say that backbone.pretrained is null, which it was not."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "resnet-one").mkdir(parents=True)
    asked = ["backbone.size=null", "backbone.pretrained=mine/resnet-won", f"output_dir={tmp_path}"]
    with pytest.raises(UserError) as caught:
        print_summary(finalize(compose("train", [*TINY, *asked])))
    assert "backbone.size=null takes the size of 'mine/resnet-won', which is not on this machine" in str(caught.value)
    assert "did you mean 'mine/resnet-one'?" in capsys.readouterr().out


def test_names_of_the_hub_have_nothing_near(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert near("google/vit") == near("gpt2") == near("/nowhere/x") == ""


@pytest.mark.parametrize("wrong", ["mine/there/model.bin", "./nothing", "mine/model.bin"])
def test_a_path_is_not_said_to_be_downloaded(tmp_path, monkeypatch, capsys, wrong):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "model.bin").write_text("x")
    with pytest.raises(UserError, match="there is no such directory"):
        print_summary(finalize(compose("train", [*TINY, f"backbone.pretrained={wrong}", f"output_dir={tmp_path}"])))
    assert "downloaded" not in capsys.readouterr().out
