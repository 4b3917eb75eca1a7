from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from trimtab.compare.report import write_html
from trimtab.compare.report.page import html_of
from trimtab.errors import InputError

from .sample import HOSTILE, comparison, sweep

CSS = (Path(__file__).parents[3] / "trimtab/compare/report/page/report.css").read_text()


class Page(HTMLParser):
    """Tags with their attributes, and what `script` and `style` hold."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.raw: list[tuple[str, str]] = []
        self._in = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._in = tag

    def handle_endtag(self, tag):
        self._in = ""

    def handle_data(self, data):
        if self._in in ("script", "style"):
            self.raw.append((self._in, data))


@pytest.fixture(scope="module", params=[comparison, sweep])
def page(request) -> Page:
    return Page(html_of(request.param()))


def test_hostile_texts_are_no_markup(page: Page) -> None:
    assert not [tag for tag, _ in page.tags if tag in ("img", "iframe", "object", "embed", "base")]
    assert [tag for tag, _ in page.tags].count("script") == 2
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on") or name == "style"]


def test_nothing_is_fetched(page: Page) -> None:
    addresses = [a[name] for _, a in page.tags for name in ("src", "href", "srcset", "action", "data") if name in a]
    assert addresses
    assert all(address.startswith(("#", "data:")) for address in addresses)
    styles = "".join(text for kind, text in page.raw if kind == "style")
    assert not re.search(r"url\(|@import", styles)


def test_the_policy_allows_just_the_page_s_own_script_and_style(page: Page) -> None:
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    _, style = page.raw[0]
    _, script = page.raw[-1]
    for name, text in (("style-src", style), ("script-src", script)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{name} 'sha256-{digest}'" in policy


def test_the_data_comes_through_whole(page: Page) -> None:
    data = json.loads(page.raw[1][1])
    words = {token for side in data["sides"] for token in side.get("tokens", [])}
    assert set(HOSTILE) <= words


def test_headings_name_their_sections(page: Page) -> None:
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(set(ids)) == len(ids)
    named = [a["aria-labelledby"] for _, a in page.tags if "aria-labelledby" in a]
    assert set(named) <= set(ids)
    assert {a["href"][1:] for tag, a in page.tags if tag == "a"} <= set(ids)
    assert all("scope" in a for tag, a in page.tags if tag == "th")


def test_a_lone_surrogate_can_be_written(tmp_path: Path) -> None:
    made = comparison()
    made["verdict"] = ["half \ud83d a pair"]
    write_html(made, tmp_path / "page.html")
    assert "half ? a pair" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_what_is_not_finite_is_no_number() -> None:
    made = comparison()
    made["records"][0]["trace"][0]["entropy"] = float("inf")
    made["figures"][0]["change"] = float("nan")
    assert "NaN" not in html_of(made)


def test_another_format_is_refused() -> None:
    with pytest.raises(InputError, match="format is 99"):
        html_of({**comparison(), "format": 99})


# -- colours -------------------------------------------------------------------------------------------------------


def _luminance(colour: str) -> float:
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    """WCAG 2, between 1 and 21."""
    low, high = sorted(map(_luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_everything_can_be_read(theme: int) -> None:
    found = re.findall(r"--([\w-]+): light-dark\(([^,]+), ([^)]+)\)", CSS)
    colours = {name: both[theme] for name, *both in found}
    colours = {name: colours["paper"] if colour == "transparent" else colour for name, colour in colours.items()}
    texts = [("ink", ground) for ground in ("paper", "raised", *(f"s{n}" for n in range(7)), "n0", "n1", "n2")]
    texts += [(name, "paper") for name in ("muted", "a", "b", "warn")] + [("muted", "raised"), ("paper", "warn")]
    for text, ground in texts:
        assert _contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for mark in range(6):
        assert _contrast(colours[f"c{mark}"], colours["paper"]) >= 3, mark
    steps = [_luminance(colours[f"s{n}"]) for n in range(7)]
    assert steps == sorted(steps, reverse=theme == 0), "a scale runs one way, so that it works without hues"
