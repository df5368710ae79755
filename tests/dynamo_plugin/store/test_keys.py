from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_plugin.errors import InvalidInput
from dynamo_plugin.store._keys import path_key

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
ODD = [
    "",
    ".",
    "..",
    "/",
    "a/b",
    "..\\..",
    "zarr.json",
    "con",
    "nul.txt",
    "COM1",
    "__x",
    ".x",
    "x.",
]


@given(TEXT | st.sampled_from(ODD))
def test_every_text_gives_one_harmless_path_segment(name: str) -> None:
    key = path_key(name)
    assert re.fullmatch(r"[a-z0-9_.~-]{1,120}", key)
    assert not key.startswith((".", "__"))
    assert not key.endswith(".")
    assert key != "zarr.json"
    assert key.partition(".")[0] not in {"con", "prn", "aux", "nul", "com1", "lpt1"}


@given(TEXT, TEXT)
def test_two_names_never_share_a_key(one: str, other: str) -> None:
    assert (path_key(one) == path_key(other)) == (one == other)


@pytest.mark.parametrize(("one", "other"), [("GRU", "gru"), ("a/b", "a_b"), ("é", "è"), ("", "_")])
def test_names_that_look_alike_differ(one: str, other: str) -> None:
    assert path_key(one).casefold() != path_key(other).casefold()


def test_the_key_of_a_name_cannot_be_taken_by_another_name() -> None:
    assert path_key(path_key("GRU/3")) != path_key("GRU/3")


def test_plain_names_are_kept_and_long_ones_cut() -> None:
    assert path_key("run-3.final_2") == "run-3.final_2"
    assert len(path_key("x" * 100_000)) < 100


def test_text_that_utf8_cannot_hold_is_refused() -> None:
    with pytest.raises(InvalidInput, match="UTF-8"):
        path_key("\ud800")
