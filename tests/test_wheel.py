"""The built wheel, installed by itself: configs inside, and working from any directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    """Built without a network, with the hatchling of this environment."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(folder), str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    """The bin/ of a fresh environment with the wheel in it.

    The libraries are those of this environment, seen through a path file. Path files in a folder seen like this are
    not read, so the editable install of the source tree stays out of sight.
    """
    place = tmp_path_factory.mktemp("fresh") / "venv"
    venv.create(place, with_pip=False, symlinks=True)
    python = place / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--quiet", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    (site,) = place.glob("lib/python*/site-packages")
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n" + sysconfig.get_path("platlib") + "\n")
    return place / "bin"


def run(program: Path, *arguments: str, cwd: Path) -> str:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "RUNNER_DATA")}
    done = subprocess.run(
        [str(program), *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_holds_the_package_and_every_config(wheel, root):
    names = set(zipfile.ZipFile(wheel).namelist())
    configs = {f"runner/{p.relative_to(root)}" for p in (root / "configs").rglob("*.yaml")}
    sources = [p for suffix in ("*.py", "*.js", "*.css") for p in (root / "src").rglob(suffix)]
    modules = {f"{p.relative_to(root / 'src')}" for p in sources}
    assert configs
    assert names >= configs | modules
    others = {name for name in names - configs - modules if ".dist-info/" not in name}
    assert not others, "nothing else travels along"
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_metadata(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    text = archive.read(name).decode()
    assert "Requires-Python: <3.14,>=3.11" in text
    assert "License-Expression: Apache-2.0" in text
    assert "Requires-Dist: hydra-core<1.4,>=1.3.8" in text


def test_the_installed_package_is_the_wheel_s(installed, tmp_path):
    where = run(installed / "python", "-c", "import runner; print(runner.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent)


def test_it_lists_its_configs(installed, tmp_path, root):
    listed = run(installed / "runner", "ls", "experiment", cwd=tmp_path)
    for path in (root / "configs" / "experiment").glob("*.yaml"):
        assert path.stem in listed
    assert list(tmp_path.iterdir()) == []


def test_it_trains_from_another_directory(installed, tmp_path):
    printed = run(installed / "runner", "train", "+experiment=demo", "trainer.max_steps=2", cwd=tmp_path)
    (result,) = tmp_path.glob("outputs/train/demo/*/result.json")
    assert json.loads(result.read_text())["steps"] == 2
    assert str(result.relative_to(tmp_path)) in printed
