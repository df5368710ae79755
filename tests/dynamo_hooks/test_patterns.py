"""Globs over module paths."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo_hooks._patterns import matches
from dynamo_plugin.errors import InvalidInput

PATHS = ["layer1", "layer1.0", "layer1.0.conv1", "layer2", "encoder.layer1", "head"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("layer*", ["layer1", "layer2"]),
        ("layer?", ["layer1", "layer2"]),
        ("layer[1]", ["layer1"]),
        ("layer[!1]", ["layer2"]),
        ("layer[0-1]", ["layer1"]),
        ("layer**", ["layer1", "layer1.0", "layer1.0.conv1", "layer2"]),
        ("layer*.*", ["layer1.0"]),
        ("layer1.**", ["layer1", "layer1.0", "layer1.0.conv1"]),
        ("layer1.*.**", ["layer1.0", "layer1.0.conv1"]),
        ("**.layer1", ["layer1", "encoder.layer1"]),
        ("**.**.layer1", ["layer1", "encoder.layer1"]),
        ("layer1.**.conv1", ["layer1.0.conv1"]),
        ("layer1.**.0.**.conv1", ["layer1.0.conv1"]),
        ("**", PATHS),
        ("**.**", PATHS),
        ("Layer1", []),
        ("layer", []),
        ("[", []),
        ("h[.]0", []),
    ],
)
def test_what_a_pattern_takes(pattern: str, expected: list[str]) -> None:
    assert [path for path in PATHS if matches(path, pattern)] == expected


def test_sets_that_run_backwards_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"'layer\[3-1\]' is not a pattern"):
        matches("layer1", "layer[3-1]")


components = st.text("ab1", min_size=1, max_size=3)
globs = st.text("ab1*?", min_size=1, max_size=4).filter(lambda text: "**" not in text)


@given(st.lists(components, min_size=1, max_size=4), st.lists(globs, min_size=1, max_size=4))
def test_components_are_matched_one_by_one_as_fnmatch_does(
    parts: list[str], patterns: list[str]
) -> None:
    expected = len(parts) == len(patterns) and all(
        fnmatchcase(part, pattern) for part, pattern in zip(parts, patterns, strict=True)
    )
    assert matches(".".join(parts), ".".join(patterns)) is expected


def by_components(parts: list[str], patterns: list[str]) -> bool:
    if not patterns:
        return not parts
    if patterns[0] == "**":
        return any(by_components(parts[skip:], patterns[1:]) for skip in range(len(parts) + 1))
    return (
        bool(parts)
        and fnmatchcase(parts[0], patterns[0])
        and by_components(parts[1:], patterns[1:])
    )


@given(
    st.lists(components, min_size=1, max_size=4),
    st.lists(globs | st.just("**"), min_size=1, max_size=5),
)
def test_two_stars_stand_for_any_number_of_components(
    parts: list[str], patterns: list[str]
) -> None:
    assert matches(".".join(parts), ".".join(patterns)) is by_components(parts, patterns)
