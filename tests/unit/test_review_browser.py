"""The review page as a person uses it, in headless Chromium; the browser decides what works."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.bought import answer, begin_run, buy, city
from helpers.browser import CHROMIUM, Browser, browser
from segue.acquire.state import Round
from segue.files import write_text
from segue.review.gather import gather
from segue.review.page import render

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed")

CELLS = [(0, 0), (1, 5), (0, 15), (2, 10), (3, 0), (4, 5)]
SCORES = [0.5, 0.9, None, 0.7, 0.1, 0.3]
ORDERS = "[...document.querySelectorAll('#cards > li:not([hidden]) .badge')].map((b) => Number(b.textContent.slice(1)))"

FOCUSED = "document.activeElement.querySelector('.badge')?.textContent"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("chromium")) as found:
        yield found


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, scene_data: Path) -> Round:
    pool, run = city(scene_data), begin_run(tmp_path_factory.mktemp("run"), scene_data)
    found = buy(run, pool, 1, CELLS, scores=SCORES, group="<b>buy</b>")
    found.by_image[found.rows[4].image][0] = found.rows[4].model_copy(update={"predicted": 255})  # no model chose it
    answer(found, pool, but=[(found.rows[5].image, 1)])
    return found


@pytest.fixture
def page(tab: Browser, one: Round, scene_data: Path, tmp_path: Path) -> Path:
    """The page, opened; its marks are those of this test alone."""
    path = tmp_path / "page.html"
    write_text(path, render(one, gather(one, city(scene_data)), tmp_path.name))
    tab.open(path)
    return path


def choose(tab: Browser, name: str, value: str) -> None:
    tab.run(
        f"(() => {{ const s = document.getElementById('{name}'); s.value = '{value}';"
        "s.dispatchEvent(new Event('change', { bubbles: true })); })()"
    )


def test_sorting(tab: Browser, page: Path, one: Round) -> None:
    assert tab.run(ORDERS) == [1, 2, 3, 4, 5, 6]
    choose(tab, "sort", "score")
    assert tab.run(ORDERS) == [5, 6, 1, 4, 2, 3]  # the one without a score is last
    tab.run("document.getElementById('direction').click()")
    assert tab.run(ORDERS) == [2, 4, 1, 6, 5, 3]
    choose(tab, "sort", "clicks")
    assert tab.run(ORDERS) == [6, 5, 4, 2, 1, 3]
    choose(tab, "sort", "px")
    px = [row.area_px - row.ignored_px for row in one.rows]
    assert [px[n - 1] for n in tab.run(ORDERS)] == sorted(px, reverse=True)


def test_filters(tab: Browser, page: Path, scene_data: Path, one: Round) -> None:
    regions = gather(one, city(scene_data)).regions
    choose(tab, "class", "5")
    assert tab.run(ORDERS) == [r.order for r in regions if 5 in (r.predicted, r.answered)]
    choose(tab, "class", "")
    choose(tab, "state", "missing")
    assert tab.run(ORDERS) == [6]
    choose(tab, "state", "differs")
    assert tab.run(ORDERS) == [1, 2, 3, 4]  # 5 has no prediction, 6 no answer
    choose(tab, "state", "marked")
    assert tab.run(ORDERS) == [] and tab.run("!document.getElementById('none').hidden")
    choose(tab, "state", "answered")
    assert tab.run("document.getElementById('shown').textContent") == "5 of 6 shown"


def test_the_keyboard_alone(tab: Browser, page: Path) -> None:
    tab.run("document.querySelector('.look').focus()")
    tab.press("ArrowRight", "ArrowRight", "ArrowLeft", "Enter")
    assert tab.run("document.getElementById('open').open")
    assert tab.run("document.getElementById('title').textContent") == "Region 2"
    tab.press("ArrowRight", "ArrowRight", "m", "v")
    assert tab.run("document.getElementById('title').textContent") == "Region 4"
    assert tab.run("document.getElementById('wrong').checked")
    assert tab.run("document.querySelectorAll('#near .over').length") == 1
    tab.press("n")
    tab.type("ArrowLeft is typed, not gone")
    tab.press("ArrowLeft")
    assert tab.run("document.getElementById('title').textContent") == "Region 4"
    tab.press("Escape")
    tab.until("document.getElementById('open').open", False)
    tab.until(FOCUSED, "#4")
    tab.press("End", "m", "Home", "o")
    assert tab.run("document.querySelectorAll('li.marked').length") == 2
    assert tab.run(FOCUSED) == "#1"
    assert tab.run("document.body.classList.contains('plain')")
    assert tab.run("document.querySelectorAll('#cards [tabindex=\"0\"]').length") == 2  # of 12 buttons: one card's


def test_marks_outlive_the_page_and_are_downloaded(tab: Browser, page: Path, one: Round) -> None:
    assert tab.run("document.getElementById('download').disabled")
    tab.run("document.querySelectorAll('.mark')[4].click()")
    tab.run("document.querySelectorAll('.look')[1].click()")
    tab.press("n")
    note = 'kerb, "not" road <i>'
    tab.type(note)
    tab.open(page)
    assert tab.run("[...document.querySelectorAll('li.marked .badge')].map((b) => b.textContent)") == ["#2", "#5"]
    assert tab.run("document.querySelector('li.marked .note').textContent") == note
    tab.run("document.getElementById('download').click()")
    marks = [
        {"round": 1, "image": one.rows[n].image, "part": one.rows[n].part, "note": text}
        for n, text in ((1, note), (4, ""))
    ]
    assert json.loads(tab.download()) == {"format": "segue-marks-1", "group": "<b>buy</b>", "marks": marks}
    tab.run("document.querySelectorAll('.mark')[4].click()")
    tab.open(page)
    assert tab.run("document.querySelectorAll('li.marked').length") == 1


def test_a_browser_that_keeps_nothing_says_so_and_works(tab: Browser, page: Path) -> None:
    script = "Object.defineProperty(window, 'localStorage', { get() { throw new Error('denied'); } })"
    added = tab.call("Page.addScriptToEvaluateOnNewDocument", source=script)["identifier"]
    tab.open(page)
    tab.call("Page.removeScriptToEvaluateOnNewDocument", identifier=added)
    tab.run("document.querySelector('.mark').click()")
    assert tab.run("document.querySelectorAll('li.marked').length") == 1
    assert "does not keep marks" in tab.run("document.getElementById('trouble').textContent")


def test_pictures_are_read_when_they_come_near(tab: Browser, page: Path) -> None:
    tab.until("document.querySelectorAll('#cards image[href]').length", 6)
    sizes = tab.run(
        "(async () => { const i = new Image(); i.src = document.querySelector('image').getAttribute('href');"
        "await i.decode(); return [i.naturalWidth, i.naturalHeight]; })()"
    )
    assert sizes == [64, 48]


def test_nothing_failed_and_nothing_was_asked_of_a_network(tab: Browser, page: Path) -> None:
    tab.run("document.querySelector('.look').click()")
    faults = [e for e in tab.events if e["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")]
    assert faults == []
    asked = {
        e["params"]["request"]["url"].partition(":")[0]
        for e in tab.events
        if e["method"] == "Network.requestWillBeSent"
    }
    assert asked <= {"file", "data", "blob"}
    assert tab.run("document.querySelectorAll('b').length") == 1  # the page's own, not the group's


def test_every_control_has_a_name(tab: Browser, page: Path) -> None:
    tab.call("Accessibility.enable")
    tab.run("document.querySelector('.look').click()")
    nodes = tab.call("Accessibility.getFullAXTree")["nodes"]
    roles = ("button", "combobox", "checkbox", "radio", "textbox", "dialog")
    found = [(n["role"]["value"], n["name"]["value"]) for n in nodes if n.get("role", {}).get("value") in roles]
    assert {"dialog", "textbox", "radio"} <= {role for role, _ in found}
    assert all(name for _, name in found), found
