"""Pictures for tasks that are not dense: seen as evaluation sees them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from runner.config.build import build
from runner.launching.rundir import RunDirectory
from runner.mixtures.multimnist import overlay
from runner.predicting import worker
from runner.predicting.request import Request
from tests.mixtures.archives import celeba_labels, write_celeba
from tests.mixtures.made import classes, png, write_images
from tests.predicting.runs import hide_data, predict, result, trained

SMALL = ["backbone=resnet", "backbone.size=tiny", "backbone.norm=group", "sampler=all"]
HUES = ("red", "green", "blue")


def picture(i: int) -> np.ndarray:
    """A noisy picture of one of three hues, of another size each."""
    rng = np.random.default_rng(i)
    pixels = rng.integers(0, 120, (20 + i % 5, 24 + i % 3, 3))
    pixels[..., i % 3] += 100
    return pixels.astype(np.uint8)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """Hues in folders of classes, and brightness in a parquet file."""
    place = tmp_path_factory.mktemp("images")
    for i in range(30):
        folder = place / "hues" / ("test" if i % 3 == i // 10 else "train") / HUES[i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i:02d}.png").write_bytes(png(picture(i)))
    light = [i % 2 for i in range(12)]
    for split in ("train", "test"):
        write_images(place / "light" / f"{split}.parquet", [picture(i) // (1 + i % 2) for i in range(12)], dark=light)
    sources = {
        "hues": {"path": "hues", "labels": {"hue": "label"}},
        "light": {"path": "light", "labels": {"dark": "dark"}},
    }
    tasks = {"hue": classes(3), "dark": classes(2) | {"class_names": ["bright", "dark"]}}
    mixture = {"sources": sources, "tasks": tasks, "size": [24, 24], "validation": 0.2, "fit": "crop"}
    made = trained(place, "images", mixture, *SMALL, "trainer.max_steps=25")
    hide_data(made, place)
    return made


def test_predictions_of_the_test_splits_are_those_of_the_evaluation(run, tmp_path) -> None:
    place = run.path.parents[3]
    found = predict(run, tmp_path / "a", image=str(place / "hues" / "test"))
    assert list(found[0]) == ["file", "hue", "hue_probability", "dark", "dark_probability"]
    assert {r["hue"] for r in found} <= set(HUES)
    right = np.mean([r["hue"] == Path(r["file"]).parent.name for r in found])
    assert right == pytest.approx(result(run, "hue")["accuracy"], abs=1e-7)
    found = predict(run, tmp_path / "b", file=str(place / "light" / "test.parquet"), keep=["dark"], tasks=["dark"])
    assert list(found[0]) == ["row", "dark_given", "dark", "dark_probability"]
    right = np.mean([r["dark"] == ("bright", "dark")[int(r["dark_given"])] for r in found])
    assert right == pytest.approx(result(run, "dark")["accuracy"], abs=1e-7)


def test_a_list_of_paths_is_read_beside_its_file(run, tmp_path) -> None:
    (tmp_path / "in").mkdir()
    for i in range(3):
        (tmp_path / "in" / f"{i}.png").write_bytes(png(picture(i)))
    (tmp_path / "in" / "list.csv").write_text("path,id\n0.png,a\n1.png,b\ngone.png,c\n,d\n2.png,e\n")
    listed = predict(
        run, tmp_path / "a", expect=1, file=str(tmp_path / "in" / "list.csv"), columns=["path"], keep=["id"]
    )
    plain = predict(run, tmp_path / "b", image=str(tmp_path / "in"))
    assert [r["id"] for r in listed if r["hue"]] == ["a", "b", "e"]
    for a, b in zip([r for r in listed if r["hue"]], plain, strict=True):
        assert float(a["hue_probability"]) == pytest.approx(float(b["hue_probability"]), abs=1e-6)


def test_pictures_that_cannot_be_read_keep_their_place(run, tmp_path, capsys) -> None:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "a.png").write_text("no picture")
    (tmp_path / "in" / "b.png").write_bytes(png(picture(0))[:200])
    (tmp_path / "in" / "sub" / "c.png").write_bytes(png(picture(0)))
    found = predict(run, tmp_path / "out", expect=1, image=str(tmp_path / "in"))
    assert [bool(r["hue"]) for r in found] == [False, False, True]
    said = capsys.readouterr()
    assert "2 of 3 pictures lack a prediction" in said.err
    assert f"{tmp_path / 'in' / 'a.png'}: it is not a picture that can be read" in said.err
    assert "sub/c.png" in said.out


def test_one_picture_is_answered_without_a_folder(run, tmp_path, capsys, monkeypatch) -> None:
    (tmp_path / "a.png").write_bytes(png(picture(1)))
    monkeypatch.chdir(tmp_path)
    assert worker.main(Request(run=str(run.path), image="a.png", device="cpu")) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "a.png"
    assert said[1].split()[0] == "hue"
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_an_older_run_without_its_data_numbers_its_classes(run, tmp_path) -> None:
    (tmp_path / "a.png").write_bytes(png(picture(1)))
    older = tmp_path / "older"
    shutil.copytree(run.path, older, symlinks=True)
    (older / "inputs.json").unlink()
    named = predict(run, tmp_path / "a", image=str(tmp_path / "a.png"))
    found = predict(RunDirectory.open(older), tmp_path / "b", image=str(tmp_path / "a.png"))
    assert found[0]["hue"] == str(sorted(HUES).index(named[0]["hue"]))
    assert found[0]["hue_probability"] == named[0]["hue_probability"]


def test_a_file_without_pictures(run, tmp_path, capsys) -> None:
    (tmp_path / "a.csv").write_text("name\nx\n")
    assert worker.main(Request(run=str(run.path), file=str(tmp_path / "a.csv"), to=str(tmp_path))) == 2
    assert "no column of pictures (looked for image)" in capsys.readouterr().err


def test_forty_questions_about_a_face(tmp_path, capsys) -> None:
    """CelebA's own files: probabilities of yes, and the accuracy of the evaluation."""
    root = write_celeba(tmp_path / "celeba", 36)
    mixture = {"path": "celeba", "size": [32, 32]}
    run = trained(tmp_path, "celeba", mixture, "backbone=cnn9", "backbone.size=tiny")
    names = sorted((root / "Img" / "img_align_celeba").iterdir())[30:]
    (tmp_path / "test").mkdir()
    for path in names:
        (tmp_path / "test" / path.name).write_bytes(path.read_bytes())
    hide_data(run, tmp_path)
    capsys.readouterr()
    found = predict(run, tmp_path / "out", image=str(tmp_path / "test"))
    assert list(found[0])[:3] == ["file", "5_o_clock_shadow", "5_o_clock_shadow=yes"]
    truth = celeba_labels(36)[30:]
    for k, task in enumerate(run.config()["mixture"]["tasks"]):
        said = np.array([r[task] == "yes" for r in found])
        assert np.mean(said == truth[:, k]) == pytest.approx(result(run, task)["accuracy"], abs=1e-7)
        assert (np.array([float(r[f"{task}=yes"]) >= 0.5 for r in found]) == said).all()
    shown = capsys.readouterr().out
    assert shown.count("\n  smiling ") == 6  # too many tasks for a table: a line each


def test_two_digits_on_one_canvas(tmp_path) -> None:
    """What training lays over one another, saved as a picture, is read as the same example."""
    digits = [np.random.default_rng(i).integers(0, 256, (28, 28)).astype(np.uint8) for i in range(12)]
    for split in ("train", "test"):
        write_images(tmp_path / "digits" / f"{split}.parquet", digits, label=[i % 10 for i in range(12)])
    sources = {"digits": {"path": "digits", "labels": {"left": "label", "right": "label"}}}
    keys = {"sources": sources, "tasks": {"left": classes(10), "right": classes(10)}, "size": [28, 28]}
    mixture = build({"_target_": "runner.mixtures.multimnist.MultiMNIST"} | keys, str(tmp_path))
    mixture.setup(None)
    (dataset,) = mixture.datasets("test").values()
    for i in range(3):
        pixels = dataset.example(i, None).inputs["pixels"]
        small = Image.fromarray((pixels[0] * 255).round().astype(np.uint8))
        np.testing.assert_array_equal(mixture.picture(small, (28, 28)), pixels)
        whole = Image.fromarray(overlay(digits[i], digits[int(dataset.rows["right"][i])], (36, 36)))
        np.testing.assert_array_equal(mixture.picture(whole, (28, 28)), pixels)
        assert mixture.picture(whole.resize((300, 200)), (28, 28)).shape == (3, 28, 28)


def test_what_a_run_keeps_of_its_classes(run) -> None:
    kept = json.loads((run.path / "inputs.json").read_text())
    assert kept["classes"] == {"hue": sorted(HUES)}
    assert kept["inputs"]["size"] == [24, 24]
