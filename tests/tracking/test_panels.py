import numpy as np
import pytest
from PIL import Image

from runner.legend import Legend
from runner.tracking import Panel
from runner.tracking.legends import draw, merge
from runner.tracking.panels import markdown, text_rows, write_panels
from runner.tracking.sheet import BLOCK_GAP, WIDTH, draw_sheet
from runner.tracking.strip import write_strips

RED, GREEN, BLUE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0)


def flat(colour, height=48, width=64) -> np.ndarray:
    return np.full((height, width, 3), colour, dtype=np.uint8)


def box(sheet: Image.Image, colour) -> tuple[int, int, int, int]:
    """Left, upper, right, lower of all pixels of one colour."""
    mask = (np.asarray(sheet) == np.array(colour)).all(-1)
    assert mask.any(), f"{colour} is not on the sheet"
    ys, xs = np.where(mask)
    return xs.min(), ys.min(), xs.max() + 1, ys.max() + 1


def test_every_picture_is_on_the_sheet_where_it_belongs():
    yellow, cyan = (255, 255, 0), (0, 255, 255)
    panel = Panel("a", flat(RED), [("depth", flat(GREEN), flat(BLUE)), ("edges", flat(yellow), flat(cyan))])
    sheet = draw_sheet([panel])
    source, target, prediction = box(sheet, RED), box(sheet, GREEN), box(sheet, BLUE)
    assert source[2] <= target[0]  # the input at the left
    assert source[1] == target[1]  # level with the targets
    assert target[3] <= prediction[1]  # the prediction below its target
    assert target[0] == prediction[0]
    assert box(sheet, yellow)[0] >= target[2]  # the next task to the right
    assert box(sheet, cyan)[1] == prediction[1]
    for found in (source, target, prediction):
        assert (found[2] - found[0], found[3] - found[1]) == (64 * 3, 48 * 3)  # whole pixels, right proportions


@pytest.mark.parametrize(("height", "width"), [(448, 576), (17, 5), (96, 128), (1, 1), (300, 2)])
def test_any_size_keeps_its_proportions(height, width):
    left, upper, right, lower = box(draw_sheet([Panel("a", flat(RED, height, width), [("x", "1", "2")])]), RED)
    assert max(right - left, lower - upper) <= max(128, 1)
    assert (right - left) / (lower - upper) == pytest.approx(width / height, rel=0.05, abs=0.02)


def test_blocks_flow_and_do_not_overlap():
    panels = [Panel(str(i), flat((i, 10, 20), 28, 28), [("digit", "7", "1")]) for i in range(100, 125)]
    sheet = draw_sheet(panels)
    boxes = [box(sheet, (i, 10, 20)) for i in range(100, 125)]
    assert sheet.width <= WIDTH + 2 * BLOCK_GAP
    assert len({b[1] for b in boxes}) > 1, "more than one row"
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_words_are_drawn_and_cut_to_their_column():
    short = draw_sheet([Panel("a", flat(RED, 28, 28), [("digit", "7", "1")])])
    longer = draw_sheet([Panel("a" * 200, flat(RED, 28, 28), [("digit", "seven " * 50, "ü→日本 " * 50)])])
    assert short.size == longer.size
    assert (np.asarray(short) != np.asarray(longer)).any()


def test_a_mixed_panel_has_pictures_and_words():
    sheet = draw_sheet([Panel("a", "some words", [("depth", flat(GREEN), flat(BLUE)), ("scene", "kitchen", "bath")])])
    assert box(sheet, GREEN)[3] <= box(sheet, BLUE)[1]


def test_target_and_prediction_must_be_alike():
    with pytest.raises(TypeError, match="of one kind"):
        draw_sheet([Panel("a", flat(RED), [("depth", flat(GREEN), "words")])])
    with pytest.raises(TypeError, match="uint8"):
        draw_sheet([Panel("a", flat(RED).astype(np.float32), [("x", "a", "b")])])


def test_files(tmp_path):
    pictures = [Panel("a", flat(RED), [("depth", flat(GREEN), flat(BLUE))])]
    words = [Panel("b", "which\nflight | train", [("intent", "book", "cancel"), ("domain", "travel", "bank")])]
    path = write_panels(tmp_path / "panels", "validation-step-00000010", pictures + words)
    assert path == tmp_path / "panels" / "validation-step-00000010.png"
    assert Image.open(path).mode == "RGB"
    table = (tmp_path / "panels" / "validation-step-00000010.md").read_text().splitlines()
    assert table[2:] == [
        "| b | which flight \\| train | intent | book | cancel |",
        "| b | which flight \\| train | domain | travel | bank |",
    ]
    assert sorted(p.name for p in (tmp_path / "panels").iterdir()) == [path.with_suffix(".md").name, path.name]
    assert write_panels(tmp_path / "panels", "x", words) is None
    assert not (tmp_path / "panels" / "x.png").exists()


def test_text_rows_leave_pictures_out():
    panels = [Panel("a", flat(BLACK), [("depth", flat(GREEN), flat(BLUE)), ("scene", "kitchen", "bath")])]
    assert text_rows(panels) == [("a", "", "scene", "kitchen", "bath")]
    assert len(markdown([]).splitlines()) == 2


def test_errors_are_a_third_row_and_legends_stand_at_the_foot():
    yellow, cyan, pink = (255, 255, 0), (0, 255, 255), (255, 0, 255)
    legend = (
        Legend(swatches=(("wall", cyan), ("a class with quite a long name", pink))),
        Legend(bar=np.array([RED, BLUE], np.uint8), low="0 m", high="1 m"),
    )
    plain = Panel("a", flat(BLACK), [("depth", flat(GREEN), flat(yellow))])
    panel = Panel("a", flat(BLACK), plain.rows, errors={"depth": flat((9, 9, 9))}, legends={"depth": legend})
    sheet = draw_sheet([panel])
    assert box(sheet, (9, 9, 9))[1] >= box(sheet, yellow)[3]
    assert box(sheet, cyan)[1] >= box(sheet, (9, 9, 9))[3]
    assert box(sheet, pink)[1] >= box(sheet, cyan)[1]
    assert sheet.height > draw_sheet([plain]).height
    assert sheet.width == draw_sheet([plain]).width


def test_a_legend_that_is_too_long_goes_on_in_the_next_line_and_counts_the_rest():
    swatches = tuple((f"class {i}", (i, 255 - i, 77)) for i in range(40))
    narrow = draw({"seg": (Legend(swatches=swatches), Legend())}, 400)
    assert narrow is not None
    for i in range(24):
        assert box(narrow, (i, 255 - i, 77))
    assert not (np.asarray(narrow) == np.array((30, 225, 77))).all(-1).any()  # "and 16 more"
    assert draw({"seg": (Legend(), Legend())}, 400) is None


def test_legends_of_several_panels_become_one():
    first = {"seg": (Legend(swatches=(("wall", RED), ("bed", BLUE))), Legend())}
    second = {"seg": (Legend(swatches=(("wall", RED), ("door", GREEN))), Legend())}
    merged = merge([first, second])
    assert [name for name, _ in merged["seg"][0].swatches] == ["wall", "bed", "door"]


def test_strips_grow_with_the_evaluations_and_forget_what_was_undone(tmp_path):
    def at(step, colour):
        panels = [
            Panel(str(i), flat(BLACK), [("depth", flat(GREEN), flat(colour)), ("scene", "a", "b")]) for i in range(6)
        ]
        return write_strips(tmp_path, step, panels)

    at(10, RED)
    narrow = Image.open(at(20, BLUE)["depth"])
    found = [box(narrow, colour)[0] for colour in (BLACK, GREEN, RED, BLUE)]
    assert found == sorted(found)
    again = Image.open(at(15, (200, 200, 0))["depth"])  # the run went on from step 10
    assert again.size == narrow.size
    assert not (np.asarray(again) == np.array(BLUE)).all(-1).any()
    for step in range(30, 400, 10):
        last = at(step, (step % 256, 1, 2))
    long = Image.open(last["depth"])
    assert box(long, RED)  # the first stays
    assert box(long, (390 % 256, 1, 2))
    assert long.width < 14 * 140
    assert list(last) == ["depth"]
