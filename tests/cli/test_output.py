"""Tables on terminals of every width, and where no person is looking."""

from __future__ import annotations

import pytest

from runner.cli import output

HEADERS = ["run", "status", "step", "result"]
PATH = "sweeps/a-long-name-0123abcd/jobs/000-89abcdef"
ROWS = [
    [PATH, "COMPLETED", "2", "segmentation miou 0.0391797, depth rmse 3.16719, normals mean 78.4781"],
    ["train/b", "FAILED", "", ""],
]


@pytest.fixture
def printed(monkeypatch, capsys):
    """Prints on a terminal of a width; returns the lines."""

    def on(width: int, headers=HEADERS, rows=ROWS, title="") -> list[str]:
        monkeypatch.setattr(output, "on_terminal", lambda stream=None: True)
        monkeypatch.setenv("NO_COLOR", "1")
        monkeypatch.setenv("TERM", "dumb")
        monkeypatch.setenv("COLUMNS", str(width))
        output.print_table(headers, rows, title)
        return capsys.readouterr().out.splitlines()

    return on


@pytest.mark.parametrize("width", range(40, 180, 7))
def test_no_line_is_too_long_and_no_word_is_cut(printed, width):
    lines = printed(max(width, len(PATH)))
    assert all(len(line.rstrip()) <= max(width, len(PATH)) for line in lines)
    words = " ".join(lines).split()
    for row in ROWS:
        for cell in row:
            assert all(word in words for word in cell.split()), lines


def test_a_narrow_terminal_gets_a_few_lines_per_row(printed):
    assert printed(60, title="runs") == [
        "runs",
        PATH,
        "  status COMPLETED   step 2",
        "  result: segmentation miou 0.0391797, depth rmse 3.16719,",
        "    normals mean 78.4781",
        "train/b",
        "  status FAILED",
    ]


def test_a_path_that_is_longer_than_the_terminal_stays_in_one_piece(printed):
    assert PATH in printed(30)
    assert f"    {'/x' * 30}" in printed(40, ["name", "where"], [["a", "/x" * 30]])


def test_a_wide_terminal_gets_columns_of_the_width_that_the_cells_need(printed):
    lines = printed(200)
    assert [line.split() for line in lines] == [HEADERS, *[cell.split() for cell in [" ".join(r) for r in ROWS]]]
    assert [line.index(word) for line, word in zip(lines, ("status", "COMPLETED", "FAILED"), strict=True)] == [
        len(PATH) + 2
    ] * 3


def test_elsewhere_a_row_is_a_line(capsys):
    output.print_table(HEADERS, ROWS)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[1].endswith(ROWS[0][-1])


def test_an_empty_table(printed):
    assert printed(40, rows=[])[0].split()[0] == "run"
