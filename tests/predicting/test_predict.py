"""`runner predict`: pictures in, pictures out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from runner.cli.main import main
from runner.config.compose import compose
from runner.config.freeze import finalize
from runner.errors import UserError
from runner.launching.rundir import RunDirectory
from runner.launching.signals import StopFlag
from runner.predicting import worker
from runner.predicting.opened import Opened
from runner.predicting.pictures import folders, read
from runner.predicting.predictor import Predictor
from runner.predicting.request import Request
from runner.training.loop import train
from runner.types import Group
from tests.support import TINY


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    overrides = [*TINY, "trainer.max_steps=1", "mixture.train=8", f"output_dir={tmp_path_factory.mktemp('run')}"]
    made = RunDirectory.claim(finalize(compose("train", overrides)), "train", ["train", *overrides])
    assert train(made, StopFlag()) == 0
    return made


@pytest.fixture(scope="module")
def predictor(run: RunDirectory) -> Predictor:
    return Predictor.of(Opened.open(run, "best", "cpu"))


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def test_predictions_have_the_size_of_the_picture(predictor: Predictor) -> None:
    for width, height in ((90, 40), (33, 77), (20, 20)):
        for size in ("model", "native"):
            found = predictor.predict(photo(width, height), size)  # type: ignore[arg-type]
            assert {name: p.shape for name, p in found.items()} == {
                name: (task.out_channels, height, width) for name, task in predictor.tasks.items()
            }
            assert all(np.isfinite(p).all() for p in found.values())


def test_at_native_size_it_is_the_model_itself(predictor: Predictor) -> None:
    image = photo(48, 40)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        expected = predictor.model(Group("x", {"pixels": pixels}), list(predictor.tasks))
    for name, found in predictor.predict(image, "native").items():
        torch.testing.assert_close(torch.from_numpy(found), expected[name][0])


def test_a_model_looks_at_about_as_many_pixels_as_in_training(predictor: Predictor) -> None:
    for size in ((4000, 3000), (60, 45), (900, 1600)):
        width, height = predictor.looked_at(size)
        assert width * height == pytest.approx(max(predictor.area, 32 * 32), rel=0.5)
        assert width / height == pytest.approx(size[0] / size[1], rel=0.4)


def test_a_folder_of_pictures(run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    photo(50, 40).save(tmp_path / "in" / "a.jpg")
    photo(30, 64).save(tmp_path / "in" / "sub" / "b.png")
    (tmp_path / "in" / "c.png").write_text("no picture")
    (tmp_path / "in" / "notes.txt").write_text("not looked at")
    image, to = str(tmp_path / "in"), str(tmp_path / "out")
    assert worker.main(Request(run=str(run.path), image=image, to=to, raw=True, device="cpu")) == 1
    said = capsys.readouterr()
    assert "c.png' is not a picture that can be read" in said.err
    assert "1 of 3 files" in said.err
    assert "2 pictures" in said.out
    for folder, (height, width) in (("a", (40, 50)), ("sub/b", (64, 30))):
        out = tmp_path / "out" / folder
        classes = np.load(out / "segmentation.npy")
        assert classes.shape == (height, width)
        assert classes.dtype == np.uint8
        assert np.load(out / "depth.npy").shape == (height, width)
        lengths = np.linalg.norm(np.load(out / "normals.npy"), axis=0)
        np.testing.assert_allclose(lengths, 1, atol=1e-4)
        edges = np.load(out / "edge.npy")
        assert 0 <= edges.min() <= edges.max() <= 1
        for name in ("segmentation", "depth", "normals", "edge", "segmentation_overlay", "edge_overlay"):
            with Image.open(out / f"{name}.png") as file:
                assert file.size == (width, height)
        assert not (out / "depth_overlay.png").exists()
        assert (out / "sheet.png").is_file()


def test_two_pictures_of_one_name_do_not_overwrite_each_other() -> None:
    paths = [Path("in/a.jpg"), Path("in/a.png"), Path("in/x/a.png")]
    assert [str(f) for f in folders(paths, Path("in"), Path("o"))] == ["o/in/a_jpg", "o/in/a_png", "o/in/x/a"] or [
        str(f) for f in folders(paths, Path("in"), Path("o"))
    ] == ["o/a_jpg", "o/a_png", "o/x/a"]


def test_pictures_as_people_have_them(tmp_path: Path) -> None:
    image = photo(6, 4)
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held upright
    image.save(tmp_path / "upright.png", exif=turned)
    assert read(tmp_path / "upright.png").size == (4, 6)
    Image.new("RGBA", (3, 2), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert read(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    Image.fromarray(np.array([[0, 30000, 60000]], np.uint16)).save(tmp_path / "deep.png")
    assert [read(tmp_path / "deep.png").getpixel((x, 0))[0] for x in range(3)] == [0, 127, 255]
    Image.new("L", (3, 2), 7).save(tmp_path / "grey.bmp")
    assert read(tmp_path / "grey.bmp").getpixel((1, 1)) == (7, 7, 7)
    (tmp_path / "half.jpg").write_bytes(b"\xff\xd8\xff\xe0 no")
    with pytest.raises(UserError, match=r"half\.jpg"):
        read(tmp_path / "half.jpg")


def test_what_is_wrong_is_said_before_a_model_is_built(
    run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty, pics, picture = (str(tmp_path / name) for name in ("empty", "pics", "pics/a.png"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "pics").mkdir()
    photo(4, 4).save(picture)
    where = str(run.path)
    for arguments, words in (
        (["--to", "x"], ["there is no input", "--image FILE|DIR"]),
        (["--image", empty, "--text", "x"], ["--image and --text exclude one another", "no picture in"]),
        (["--image", empty, "--to", "x"], ["no picture in"]),
        (
            ["--image", "gone.png", "--device", "gpu"],
            ["--device is 'gpu'", "there is no 'gone.png'"],
        ),
        (["--image", pics, "--to", "x", "--checkpoint", "7"], ["no checkpoint"]),
        (["--image", picture], ["--to is missing"]),
        (["--image", pics, "--to", "x", "--tasks", "depht"], ["no task 'depht'", "did you mean 'depth'"]),
        (["--text", "hello"], ["reads pictures", "give --image"]),
        (["--file", "notes.txt", "--to", "x"], ["there is no 'notes.txt'"]),
        (["--image", pics, "--to", "x", "--keep", "id"], ["--keep names columns of a file"]),
        (["--image", pics, "--to", "x", "--batch-size", "many"], ["--batch-size is 'many'"]),
        (["--text"], ["--text needs a value"]),
        (["--text", " ", "--pair", "x", "--pair", "y"], ["a text is empty", "--pair is given 2 times"]),
    ):
        assert main(["predict", where, *arguments]) == 2
        said = capsys.readouterr().err
        assert all(word in said for word in words), said


def test_a_run_without_inputs_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = finalize(compose("train", ["+experiment=toy_pareto", f"output_dir={tmp_path}"]))
    made = RunDirectory.claim(config, "train", [])
    checkpoint = made.path / "checkpoints" / "step-00000001"
    checkpoint.mkdir(parents=True)
    (checkpoint / "DONE").touch()
    (made.path / "checkpoints" / "best").symlink_to(checkpoint.name)
    photo(4, 4).save(tmp_path / "a.png")
    assert main(["predict", str(made.path), "--image", str(tmp_path / "a.png"), "--to", str(tmp_path / "o")]) == 2
    assert "are functions of the weights alone" in capsys.readouterr().err
