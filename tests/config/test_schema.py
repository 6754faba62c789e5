from __future__ import annotations

from dataclasses import asdict, fields

import pytest
import yaml

from runner.config import paths, schema


@pytest.mark.parametrize(("section", "option"), [("trainer", "default"), ("tracking", "wandb"), ("launch", "local")])
def test_defaults_stand_the_same_in_code_and_yaml(section, option):
    written = yaml.safe_load((paths.config_root() / section / f"{option}.yaml").read_text())
    defaults = schema.section_defaults(section)
    if section == "launch":
        del defaults["slurm"]  # of launch/slurm.yaml
    assert written == defaults
    assert list(written) == list(defaults)


def test_defaults_of_slurm_stand_the_same_in_code_and_yaml():
    written = yaml.safe_load((paths.config_root() / "launch/slurm.yaml").read_text())
    defaults = schema.section_defaults("launch")
    assert written == {key: defaults[key] for key in written} | {"scheduler": "slurm"}
    assert list(written["slurm"]) == [f.name for f in fields(schema.SlurmConfig)]


def test_top_level_keys_of_train():
    written = yaml.safe_load((paths.config_root() / "train.yaml").read_text())
    plain = {k: v for k, v in written.items() if k not in ("defaults", "hydra")}
    assert plain | {"data_root": "data"} == asdict(schema.TrainKeys())
    assert plain["data_root"] == "${oc.env:RUNNER_DATA,data}"
    groups = [next(iter(entry)) for entry in written["defaults"] if isinstance(entry, dict)]
    assert {g for g in groups if not g.startswith("override")} == {*schema.COMPONENTS, *schema.SECTIONS}


def test_top_level_keys_of_eval():
    written = yaml.safe_load((paths.config_root() / "eval.yaml").read_text())
    plain = {k: v for k, v in written.items() if k not in ("defaults", "hydra")}
    assert plain == asdict(schema.EvalKeys(run="???"))


def test_the_yaml_of_tune_holds_the_defaults():
    written = yaml.safe_load((paths.config_root() / "tune.yaml").read_text())["tune"]
    assert written == asdict(schema.TuneConfig())
