"""`runner rerun`: the same numbers from a frozen configuration, or a clear no."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from runner.cli.main import main
from runner.config.compose import compose
from runner.config.freeze import finalize
from runner.launching.rundir import RunDirectory
from runner.launching.signals import StopFlag
from runner.training.loop import train
from tests.support import TINY


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("outputs")
    overrides = [*TINY, "trainer.max_steps=4", "mixture.train=16", "tasks=[depth]", "launch.device=cpu"]
    run = RunDirectory.claim(finalize(compose("train", [*overrides, f"output_dir={output}"])), "train", ["train"])
    assert train(run, StopFlag()) == 0
    return run.path


def change_result(run: Path, factor: float) -> None:
    result = json.loads((run / "result.json").read_text())
    result["tasks"]["depth"]["rmse"] *= factor
    (run / "result.json").write_text(json.dumps(result))


def test_a_copied_run_gives_the_same_bits_elsewhere(finished, tmp_path, capfd):
    copy = tmp_path / "from a colleague" / "run"
    shutil.copytree(finished, copy, symlinks=True)
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config |= {"output_dir": "/not/on/this/machine", "data_root": "/nor/this"}
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    info = json.loads((copy / "run.json").read_text())
    info["packages"]["torch"] = "1.0"
    (copy / "run.json").write_text(json.dumps(info))
    assert main(["rerun", str(copy), f"data_root={tmp_path}", "tracking.console=quiet", "--json"]) == 0
    answer = json.loads(capfd.readouterr().out)
    assert answer["verdict"] == "exact" and answer["same_weights"] is True
    assert {"what": "torch", "before": "1.0"}.items() <= answer["circumstances"][0].items()
    new = Path(answer["run"])
    assert new.parents[2] == Path("outputs").absolute() and new != copy
    assert json.loads((new / "rerun.json").read_text()) == answer
    assert json.loads((new / "run.json").read_text())["argv"][:2] == ["rerun", str(copy)]
    # and `--against` compares two runs without running anything
    change_result(new, 1.01)
    assert main(["rerun", str(copy), "--against", str(new)]) == 1
    out = capfd.readouterr().out
    assert "DO NOT MATCH" in out and "1 different" in out and "torch" in out and "may explain it" in out
    assert main(["rerun", str(copy), "--against", str(new), "--tolerance", "0.02"]) == 0
    assert "match within 0.02" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "DIR is missing"),
        (["nowhere"], "there is no folder 'nowhere'"),
        (["RUN", "RUN"], "too many arguments"),
        (["RUN", "optimizer.lr=1"], "'optimizer.lr' affects the weights: a rerun keeps it"),
        (["RUN", "data_rot=x"], "did you mean 'data_root'?"),
        (["RUN", "launch.device=tpu"], "'launch.device' must be one of auto, cpu, cuda"),
        (["RUN", "--tolerance", "2"], "--tolerance must be a number"),
        (["RUN", "--tolerence=2"], "did you mean '--tolerance'?"),
        (["RUN", "--against", "nowhere"], "there is no folder 'nowhere'"),
    ],
)
def test_mistakes(finished, arguments, words, capfd):
    assert main(["rerun", *(str(finished) if a == "RUN" else a for a in arguments)]) == 2
    assert words in capfd.readouterr().err
    assert not Path("outputs").exists()


def test_all_mistakes_at_once(finished, capfd):
    assert main(["rerun", str(finished), "data_rot=x", "launch.device=tpu", "seed=3"]) == 2
    err = capfd.readouterr().err
    assert err.count("error:") == 3 and "'seed' affects the weights" in err


def test_a_run_without_a_result(finished, tmp_path, capfd):
    copy = tmp_path / "run"
    shutil.copytree(finished, copy, symlinks=True)
    (copy / "result.json").unlink()
    assert main(["rerun", str(copy)]) == 2
    err = capfd.readouterr().err
    assert "has no result to compare with" in err and f"runner resume {copy}" in err
    assert main(["rerun", str(finished), "--against", str(copy)]) == 2


def test_an_edited_configuration_is_said_so(finished, tmp_path, capfd, monkeypatch):
    from runner.launching import front

    copy = tmp_path / "run"
    shutil.copytree(finished, copy, symlinks=True)
    config = yaml.safe_load((copy / "config.yaml").read_text()) | {"seed": 7}
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    seen: list[dict] = []
    monkeypatch.setattr(front, "train", lambda config, argv: seen.append(config) or 75)
    assert main(["rerun", str(copy)]) == 75
    err = capfd.readouterr().err
    assert "the file was edited" in err and "--against" in err
    assert seen[0]["seed"] == 7 and Path(seen[0]["run_dir"]).parent.name == "rooms"
