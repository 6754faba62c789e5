import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.errors import RunFailed
from runner.tracking import MetricsFile, read_metrics


def rows(path: Path) -> list[tuple]:
    return [tuple(row.values()) for row in read_metrics(path)]


def test_one_row_per_value_in_the_promised_form(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl", attempt=2, resume_step=0)
    file.append(7, "train", {"depth": {"loss": 0.5, "rmse": 1}, "": {"lr": 1e-3}})
    file.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 7, "attempt": 2, "split": "train", "task": "depth", "metric": "loss", "value": 0.5},
        {"step": 7, "attempt": 2, "split": "train", "task": "depth", "metric": "rmse", "value": 1.0},
        {"step": 7, "attempt": 2, "split": "train", "task": "", "metric": "lr", "value": 0.001},
    ]


def test_rows_are_there_before_the_file_is_closed(tmp_path):
    file = MetricsFile(tmp_path / "m", 1, 0)
    file.append(1, "train", {"a": {"loss": 1.0}})
    assert rows(tmp_path / "m") == [(1, 1, "train", "a", "loss", 1.0)]
    file.close()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_json_cannot_say_is_null(tmp_path, value):
    file = MetricsFile(tmp_path / "m", 1, 0)
    file.append(1, "train", {"a": {"loss": value}})
    file.close()

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    assert json.loads((tmp_path / "m").read_text(), parse_constant=refuse)["value"] is None


def test_a_new_attempt_drops_what_will_be_done_again(tmp_path):
    first = MetricsFile(tmp_path / "m", 1, 0)
    for step in range(1, 11):
        first.append(step, "train", {"a": {"loss": float(step)}})
    first.append(6, "validation", {"a": {"miou": 0.5}})
    first.close()
    second = MetricsFile(tmp_path / "m", 2, resume_step=6)
    second.append(7, "train", {"a": {"loss": 70.0}})
    second.close()
    assert [row[:2] + row[5:] for row in rows(tmp_path / "m")] == [
        *((step, 1, float(step)) for step in range(1, 7)),
        (6, 1, 0.5),
        (7, 2, 70.0),
    ]


def test_starting_over_keeps_nothing(tmp_path):
    first = MetricsFile(tmp_path / "m", 1, 0)
    first.append(0, "validation", {"a": {"miou": 0.1}})
    first.close()
    MetricsFile(tmp_path / "m", 2, 0).close()
    assert (tmp_path / "m").read_bytes() == b""


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 400), tail=st.sampled_from([b"", b"\0\0\0", b"{", b'{"step": 9', b"\xff\xfe"]))
def test_whatever_was_torn_the_next_attempt_leaves_a_valid_file(tmp_path_factory, cut, tail):
    path = tmp_path_factory.mktemp("torn") / "m"
    file = MetricsFile(path, 1, 0)
    for step in (1, 2, 3, 4):
        file.append(step, "train", {"tiefe ü": {"loss": step / 3}})
    file.close()
    whole = path.read_bytes()
    torn = whole[: max(0, len(whole) - cut)]
    path.write_bytes(torn + tail)
    MetricsFile(path, 2, resume_step=3).close()
    expected = [line for line in torn.splitlines(keepends=True) if line.endswith(b"\n")][:3]
    assert path.read_bytes() == b"".join(expected)


def test_a_file_that_needs_no_cut_is_left_alone(tmp_path):
    file = MetricsFile(tmp_path / "m", 1, 0)
    file.append(1, "train", {"a": {"loss": 1.0}})
    file.close()
    before = os.stat(tmp_path / "m").st_ino
    MetricsFile(tmp_path / "m", 2, resume_step=5).close()
    assert os.stat(tmp_path / "m").st_ino == before


def test_reading_tolerates_a_torn_last_line_but_not_a_broken_one_inside(tmp_path):
    whole = '{"step":1,"attempt":1,"split":"train","task":"","metric":"lr","value":1.0}\n'
    (tmp_path / "m").write_text(whole + whole[:20])
    assert len(read_metrics(tmp_path / "m")) == 1
    (tmp_path / "m").write_text(whole + "nonsense\n" + whole)
    with pytest.raises(ValueError, match="line 2"):
        read_metrics(tmp_path / "m")
    assert read_metrics(tmp_path / "absent") == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is what a full disk looks like, on Linux")
def test_a_full_disk_is_said_in_words():
    program = """
from pathlib import Path
from runner.errors import RunFailed
from runner.tracking import jsonl
jsonl._truncate = lambda path, step: None
file = jsonl.MetricsFile(Path("/dev/full"), 1, 0)
try:
    file.append(1, "train", {"a": {"loss": 1.0}})
except RunFailed as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "cannot write /dev/full: No space left on device" in done.stdout
    assert "runner resume" in done.stdout


def test_a_place_that_cannot_be_written_is_said_in_words(tmp_path):
    with pytest.raises(RunFailed, match="cannot write"):
        MetricsFile(tmp_path / "absent" / "m", 1, 0)


def test_the_final_test_is_written_once_however_often_it_is_done(tmp_path):
    first = MetricsFile(tmp_path / "m", 1, 0)
    first.append(6, "validation", {"a": {"miou": 0.5}})
    first.append(6, "test", {"a": {"miou": 0.4}})  # and killed before result.json
    first.close()
    second = MetricsFile(tmp_path / "m", 2, resume_step=6)
    second.append(6, "test", {"a": {"miou": 0.4}})
    second.close()
    assert [row[:3] for row in rows(tmp_path / "m")] == [(6, 1, "validation"), (6, 2, "test")]
