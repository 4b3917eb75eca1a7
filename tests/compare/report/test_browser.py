"""The page in a real browser: what it shows, and that it neither complains nor asks for anything."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from trimtab.compare.report import write_html

from . import browser as browsers
from .sample import HOSTILE, comparison, sweep

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browsers.find() is None, reason="no Chromium on the path"),
]
TEXTS = "[...document.querySelectorAll('.pair')].map(p => [...p.querySelectorAll('.side .text')].map(t => t.innerText))"


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[browsers.Browser]:
    with browsers.Browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    where = tmp_path_factory.mktemp("pages")
    write_html(comparison(40), where / "ab.html")
    write_html(sweep(), where / "sweep.html")
    return where


@pytest.fixture
def page(browser, folder) -> Iterator[browsers.Browser]:
    browser.messages.clear()
    browser.requests.clear()
    browser.view(1200)
    browser.open(folder / "ab.html")
    yield browser
    assert browser.run("document.title").endswith("· trimtab"), "a text ran as a script"
    assert browser.messages == []
    assert {request.partition(":")[0] for request in browser.requests} <= {"file", "data"}
    assert all(request.endswith(".html") for request in browser.requests if request.startswith("file"))


def test_the_verdict_comes_first_and_largest(page) -> None:
    sizes = page.run(
        "[...document.querySelectorAll('main p, main h1 code, main td')]"
        ".map(e => [e.textContent, parseFloat(getComputedStyle(e).fontSize)])"
    )
    texts = [text for text, _ in sizes if not text.startswith("none")]
    assert "B writes 1.5 times as many tokens per second as A." in texts[:2]
    assert max(sizes, key=lambda pair: pair[1])[0] == "B writes 1.5 times as many tokens per second as A."


def test_texts_are_shown_as_they_are(page) -> None:
    first = page.run(TEXTS)[0]
    assert len(first) == 2
    for piece in HOSTILE[:4]:
        assert all(piece in text for text in first)
    assert page.run("document.querySelectorAll('.pair img, .pair script').length") == 0


def test_the_first_difference_is_marked_on_both_sides(page) -> None:
    after = page.run(
        "[...document.querySelector('.pair').querySelectorAll('.fork')].map(f => f.nextElementSibling.textContent)"
    )
    # the fifth word, where only B has one more
    assert after == [HOSTILE[2], "other "]


def test_the_rest_comes_on_demand(page) -> None:
    # of 40 prompts every third is the same, and one failed
    assert len(page.run(TEXTS)) == 10
    assert page.run("document.getElementById('shown').textContent") == "10 of 26 shown"
    page.run("document.getElementById('more').click()")
    assert page.run("document.querySelectorAll('.pair').length") == 26
    assert page.run("document.getElementById('more').hidden") is True
    page.run("which.value = 'all'; which.dispatchEvent(new Event('change'))")
    assert page.run("document.getElementById('shown').textContent") == "10 of 39 shown"
    page.run("group.value = 'group 4'; group.dispatchEvent(new Event('change'))")
    assert page.run("document.getElementById('shown').textContent") == "4 of 4 shown"


def test_tokens_take_the_colour_that_is_chosen(page) -> None:
    grounds = (
        "[...new Set([...document.querySelector('.pair').querySelectorAll('.side:last-child .token')]"
        ".map(t => getComputedStyle(t).backgroundColor))].length"
    )
    choices = page.run("[...document.getElementById('colour').options].map(o => o.value)")
    assert choices == ["entropy", "model", "accepted", ""]
    seen = {}
    for choice in choices:
        page.run(f"colour.value = '{choice}'; colour.dispatchEvent(new Event('change'))")
        seen[choice] = (page.run(grounds), page.run("document.querySelectorAll('#key li').length"))
    # nine tokens of 0, 0.3 .. 2.4 bits; a legend entry for each class
    assert seen == {"entropy": (5, 7), "model": (2, 2), "accepted": (2, 2), "": (1, 0)}


def test_what_is_known_of_a_token_is_told_to_the_keyboard_as_well(page) -> None:
    page.run("document.querySelector('.side:last-child .token[tabindex=\"0\"]').focus()")
    tip = "document.getElementById('tip').hidden ? '' : document.getElementById('tip').innerText"
    assert "entropy 0.00 bits" in page.run(tip)
    assert "small model" in page.run(tip)
    page.press("ArrowRight")
    assert page.run("document.activeElement.textContent") == "moon "
    assert "large model" in page.run(tip)
    assert "accepted draft" in page.run(tip)
    assert page.run("document.activeElement.getAttribute('aria-describedby')") == "tip"
    page.press("End")
    assert page.run("document.activeElement.textContent") == "0"
    page.press("Escape")
    assert page.run(tip) == ""
    # the arrows move inside a text: Tab has one stop in each
    assert page.run("document.querySelector('.side:last-child').querySelectorAll('.token[tabindex=\"0\"]').length") == 1


def test_every_control_has_a_name(page) -> None:
    tree = page.call("Accessibility.getFullAXTree")["nodes"]
    controls = {"button", "combobox", "radio", "link", "DisclosureTriangle", "radiogroup", "image", "region", "table"}
    named = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in tree if not node["ignored"]]
    found = [pair for pair in named if pair[0] in controls]
    assert {"button", "combobox", "radio", "image", "table"} <= {role for role, _ in found}
    # the two tables in scrolling regions take the region's name
    assert [pair for pair in found if not pair[1] and pair[0] != "table"] == []


def test_the_theme_follows_the_system_and_the_button(page, folder) -> None:
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    light = page.run(ground)
    page.view(1200, dark=True)
    dark = page.run(ground)
    assert (light, dark) == ("rgb(253, 253, 251)", "rgb(22, 24, 27)")
    page.run("document.getElementById('theme').click()")
    assert page.run(ground) == light
    page.open(folder / "ab.html")
    assert page.run(ground) == light, "the choice is kept"
    page.run("document.getElementById('theme').click(); localStorage.clear()")
    assert page.run(ground) == dark


@pytest.mark.parametrize("width", [320, 390, 768, 1200])
@pytest.mark.parametrize("name", ["ab", "sweep"])
def test_nothing_hangs_over_the_edge(page, folder, width, name) -> None:
    page.view(width)
    page.open(folder / f"{name}.html")
    wide = page.run(
        "[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, .hidden, [hidden], svg'))"
        f".filter(e => e.getBoundingClientRect().right > {width} + 1).map(e => e.tagName + '.' + e.className)"
    )
    assert wide == []
    assert page.run("document.documentElement.scrollWidth") <= width
    # tables with a drawing never scroll: its axis would be out of sight
    boxes = "[...document.querySelectorAll('.scroll:has(.forest)')].filter(e => e.scrollWidth > e.clientWidth).length"
    assert page.run(boxes) == 0


def test_a_sweep_shows_one_setting_s_texts_at_a_time(page, folder) -> None:
    page.open(folder / "sweep.html")
    names = "[...new Set([...document.querySelectorAll('.pair h4 b')].map(b => b.textContent))]"
    assert page.run(names) == ["baseline", "bits=8"]
    other = f"bits={HOSTILE[1]}"
    page.run(f"document.getElementById('with').value = {json.dumps(other)}")
    page.run("document.getElementById('with').dispatchEvent(new Event('change'))")
    assert page.run(names) == ["baseline", other]
    assert page.run("document.querySelectorAll('.spot').length") == 4


def test_a_policy_stops_what_would_ask_for_something(browser, folder) -> None:
    """That the checks above can fail: a picture put into the page is refused and heard of."""
    browser.open(folder / "ab.html")
    browser.messages.clear()
    browser.run("document.body.append(Object.assign(new Image(), {src: 'http://192.0.2.1/x.png'}))")
    browser.run("new Promise(done => setTimeout(done, 500))")
    browser.run("1")
    assert any("Content Security Policy" in message for message in browser.messages)
    browser.messages.clear()
