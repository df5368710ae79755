from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_plugin.report._html import (
    Cell,
    facts,
    json_block,
    number,
    paragraph,
    plot,
    section,
    table,
)


class Reader(HTMLParser):
    """Collects the tags and the text of a piece of HTML."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=30)


BUILDERS: list[Callable[[str], str]] = [
    paragraph,
    lambda text: facts([("name", text)]),
    lambda text: section("s", text),
    lambda text: section("s", "title", lead=f"lead {text}"),
    lambda text: table([text], [], caption="c"),
    lambda text: table(["h"], [[Cell(text)]], caption="c", name="n"),
    lambda text: table(["h"], [[Cell("x", note=f"note {text}")]], caption="c"),
    lambda text: table(["h"], [], caption=text),
    lambda text: plot("p", label=text),
]


@given(TEXT, st.sampled_from(BUILDERS))
def test_text_comes_back_as_text(text: str, build: Callable[[str], str]) -> None:
    reader = Reader(build(text))
    assert reader.tags == Reader(build("harmless")).tags
    assert text in reader.text


@given(st.recursive(TEXT | st.integers() | st.none(), lambda inner: st.lists(inner, max_size=3)))
def test_data_come_back_and_end_no_script(value: Any) -> None:
    block = json_block("name", value)
    match = re.fullmatch(r'<script type="application/json" id="name">(.*)</script>', block)
    assert match is not None
    assert json.loads(match[1]) == value
    assert not set(match[1]) & set("<>&\u2028\u2029")
    assert match[1].isascii()


def test_data_hold_no_nan() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_block("name", float("nan"))


def test_rows_and_columns_have_scopes() -> None:
    html = table(["model", "value"], [[Cell("a"), Cell("0.5", value=0.5, bar=2.0)]], caption="c")
    assert html.count('scope="col"') == 2
    assert html.count('scope="row"') == 1
    assert "--length:100.0%" in html
    assert 'data-value="0.5"' in html


def test_numbers() -> None:
    assert number(float("nan")) == number(None) == "-"
    assert number(0.0) == "0.000"
    assert number(-0.25, digits=2) == "-0.25"
