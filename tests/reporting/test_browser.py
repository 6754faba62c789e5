"""The page in a real browser: it opens from disk, draws everything, complains about nothing, and can be used."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.reporting.build import build
from runner.reporting.page import render
from runner.reporting.read import load
from tests.reporting import chromium
from tests.reporting.synthetic import TASKS, make_config, write_panel, write_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium.find() is None, reason=f"needs a browser: one of {', '.join(chromium.NAMES)}"),
]


@pytest.fixture(scope="module")
def page(sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    for run in sweep.glob("jobs/00[03]-*"):
        write_panel(run)
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render(build(load([sweep]))))
    return path


@pytest.fixture(scope="module")
def window() -> Iterator[chromium.Browser]:
    with chromium.Browser(chromium.find()) as browser:
        yield browser


@pytest.fixture
def browser(window: chromium.Browser, page: Path) -> chromium.Browser:
    window.problems.clear()
    window.events.clear()
    window.size(1300, 900)
    window.open(page)
    return window


def count(browser: chromium.Browser, selector: str) -> int:
    return browser.value(f"document.querySelectorAll({selector!r}).length")


def labels(browser: chromium.Browser) -> list[str]:
    return browser.value("[...document.querySelectorAll('tr.setting')].map(r => r.cells[0].textContent.trim())")


def test_everything_is_drawn_without_a_complaint(browser):
    assert count(browser, "[data-part=curves] .card svg") == 4
    assert count(browser, "[data-part=delta] svg circle") == 6  # a point for each completed seed
    assert count(browser, "[data-part=weights] .card svg") == 3
    assert count(browser, "[data-part=front] svg") == 0, "three settings are no front"
    assert count(browser, "[data-part=conflict] .card svg") == 3
    assert count(browser, "[data-part=panels] img") == 2
    assert count(browser, "[data-part=runs] .run") >= 1
    assert "OutOfMemoryError" in browser.value("document.querySelector('[data-part=runs]').textContent")
    assert "undefined" not in browser.value("document.body.innerText") and "NaN" not in browser.value(
        "document.body.innerHTML.split('<script')[0]"
    )
    assert browser.problems == []


def test_nothing_is_asked_of_a_network(browser):
    assert [url for url in browser.requests() if not url.startswith(("file:", "data:"))] == []


def test_pictures_are_shown(browser):
    assert browser.value("[...document.images].every(i => (i.loading = 'eager', true))")
    time.sleep(0.3)
    assert browser.value("[...document.images].every(i => i.complete && i.naturalWidth > 0)")


def test_a_click_on_a_heading_sorts(browser):
    before = labels(browser)
    click = "[...document.querySelectorAll('tr.names th')].find(t => t.dataset.key === 'segmentation/miou').firstChild.click()"  # noqa: E501
    browser.value(click)
    upwards = labels(browser)
    browser.value(click)
    assert labels(browser) == upwards[::-1] and sorted(upwards) == sorted(before)
    assert browser.value("document.querySelector('th[aria-sort]').getAttribute('aria-sort')") == "descending"
    first = browser.value("[...document.querySelector('.results tbody').rows].map(r => r.className.split(' ')[0])")
    assert first[:2] == ["baseline", "published"], "what is compared against stays on top"


def test_hidden_metrics_come_on_demand(browser):
    visible = "[...document.querySelectorAll('tr.names th')].filter(t => t.offsetParent !== null).length"
    few = browser.value(visible)
    browser.value("document.querySelector('[data-part=controls] input').click()")
    assert browser.value(visible) == few + 10
    spans = "[...document.querySelectorAll('tr.over th')].filter(t => t.style.display !== 'none').reduce((a, t) => a + t.colSpan, 0)"  # noqa: E501
    assert browser.value(spans) == few + 10


def test_a_row_can_be_taken_out_of_the_plots(browser):
    lines = "[data-part=curves] .card:first-child g path[stroke-width='2']"
    assert count(browser, lines) == 4  # three settings and the baseline
    browser.value("document.querySelector('tr.setting .swatch').click()")
    assert count(browser, lines) == 3
    assert browser.problems == []


def test_every_choice_draws_again(browser):
    browser.value("""for (const list of document.querySelectorAll('select')) for (const option of list.options) {
        list.value = option.value; list.dispatchEvent(new Event('change')); }""")
    browser.value("for (const box of document.querySelectorAll('input')) box.click()")
    assert browser.problems == [] and count(browser, "[data-part=curves] .card svg") == 4


def test_the_pointer_is_told_values(browser):
    browser.value("""const over = document.querySelector('[data-part=curves] svg > rect');
        const box = over.getBoundingClientRect(), clientX = box.left + box.width / 2, clientY = box.top + 5;
        over.dispatchEvent(new PointerEvent('pointermove', {clientX, clientY}))""")
    assert browser.value("document.getElementById('tip').textContent").startswith("step ")


def test_a_narrow_window_does_not_scroll_sideways(browser):
    browser.size(380, 800)
    time.sleep(0.4)
    assert browser.value("document.documentElement.scrollWidth") <= 380
    assert browser.problems == []


def test_light_and_dark_and_paper(browser, tmp_path):
    colour = "getComputedStyle(document.body).backgroundColor"
    browser.scheme("light")
    light = browser.value(colour)
    browser.scheme("dark")
    dark = browser.value(colour)
    browser.scheme("light")
    assert light == "rgb(255, 255, 255)" and sum(map(int, dark[4:-1].split(","))) < 120
    browser.pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF") and browser.problems == []


def test_a_search_shows_what_mattered_and_the_front(window, tmp_path):
    for number, lr in enumerate((0.001, 0.003, 0.01, 0.03, 0.1)):
        values = {task: {m: end for m, (_, _, end) in metrics.items()} for task, metrics in TASKS.items()}
        values["segmentation"]["miou"] = 0.3 + lr  # the larger, the better here and the worse there,
        values["depth"]["rmse"] = 0.6 + 5 * lr if number != 2 else 2.0  # but the third is beaten in both
        word = f"optimizer.lr={lr}"
        write_run(tmp_path / "jobs" / f"{number:03}-aaaaaaaa", make_config([word]), [word], values=values)
    (tmp_path / "sweep.json").write_text('{"schema": 1, "name": "x", "verb": "tune", "axes": {"optimizer.lr": []}}')
    (tmp_path / "tune.json").write_text('{"objective": ["depth/rmse"], "importance": {"optimizer.lr": 0.9, "b": 0.1}}')
    report = build(load([tmp_path]))
    (tmp_path / "page.html").write_text(render(report))
    window.problems.clear()
    window.open(tmp_path / "page.html")
    assert window.value("document.querySelector('#searches').textContent").count("%") == 2
    assert count(window, "[data-part=front] circle") == 5
    assert count(window, "[data-part=front] circle[r='6']") == 4
    assert window.problems == []


def test_the_benchmark(root):
    """The script that holds the page against its bars runs; with fewer runs than they speak of, to be quick."""
    command = [sys.executable, str(root / "scripts" / "bench" / "report.py"), "--runs", "120", "--slack", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
