from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

import dynamo_plugin as dp
from dynamo_plugin.embedding import ModelEmbedding
from dynamo_plugin.errors import InvalidInput, StoreExists, StoreNotFound, UnknownName
from tests.dynamo_plugin.report.conftest import HOSTILE

Embed = Callable[..., ModelEmbedding]


@pytest.fixture(scope="module")
def page(hostile: ModelEmbedding, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = dp.write_report(hostile, tmp_path_factory.mktemp("page") / "report.html")
    return path.read_text(encoding="utf-8")


def without_scripts(page: str) -> str:
    return re.sub(r"<script[^>]*>.*?</script>", "", page, flags=re.DOTALL)


def test_every_section_is_there(page: str) -> None:
    shown = without_scripts(page)
    for name in (
        "embedding",
        "fidelity",
        "clusters",
        "attribution",
        "average",
        "distances",
        "training",
        "run",
    ):
        assert f'<section id="{name}"' in shown
        assert f'href="#{name}"' in shown
    assert shown.count("<h1>") == 1
    assert "<h1>toy &amp; &lt;i&gt;</h1>" in shown


def test_every_plot_has_its_data_and_is_drawn(page: str) -> None:
    script = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)[-1]
    assert 'querySelectorAll(".canvas")' in script
    places = re.findall(r'<div id="([^"]*)" class="canvas"', page)
    assert len(places) == 8
    for name in places:
        assert f'id="{name}-data"' in page


def test_names_are_text(page: str, hostile: ModelEmbedding) -> None:
    assert "onerror=alert" in page
    assert "<img" not in page.replace("<img>", "").split("<script>", maxsplit=1)[0]
    shown = without_scripts(page)
    for name in hostile.ids:
        assert html.escape(name) in shown
    assert "<b>bold" not in shown
    # Plotly reads HTML too, so that its strings are escaped once more, within JSON.
    scatter = re.search(r'id="scatter-data">(.*?)</script>', page)
    assert scatter is not None
    points = json.loads(scatter[1])
    assert "&lt;img src=x" in points["hover"][0]
    kind = next(column for column in points["columns"] if column["name"] == "kind")
    assert kind["categories"][0].startswith("&lt;b&gt;bold&lt;/b&gt; &amp; Grüße")
    groupings = [name for name in hostile.metadata.columns if name in ("kind", "<u>size</u>")]
    assert points["columns"][points["first"]]["name"] == groupings[0]


def test_nothing_is_asked_for_elsewhere(page: str) -> None:
    ours = without_scripts(page)
    for address in re.findall(r'(?:src|href|action)="([^"]*)"', ours):
        assert address.startswith(("#", "data:"))
    assert "url(" not in ours
    assert "@import" not in ours


def test_the_policy_names_the_scripts_of_the_page(page: str) -> None:
    policy = html.unescape(re.search(r'Security-Policy" content="([^"]*)"', page)[1])  # type: ignore[index]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    scripts = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    assert len(scripts) == 2
    for script in scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy


def test_figures_in_the_page_are_those_of_the_analyses(page: str, hostile: ModelEmbedding) -> None:
    shown = without_scripts(page)
    table = dp.analyse("fidelity", hostile).to_dataframe()
    for value in table["hidden_r2"]:
        assert f'data-value="{value:.12g}"' in shown
    found = dp.analyse("clusters", hostile, labels="kind").summary()
    silhouette: Any = found["label_silhouette"]
    assert f">{silhouette:.3f} <" in shown


def test_the_dimensions_of_theta_are_shown(page: str, hostile: ModelEmbedding) -> None:
    shown = html.unescape(without_scripts(page))
    variances = np.linalg.eigvalsh(np.cov(hostile.thetas.double().numpy().T))
    ratio = variances.sum() ** 2 / (variances**2).sum()
    found = re.search(r'participation ratio.*?data-value="([^"]*)"', shown)
    assert found is not None
    assert float(found[1]) == pytest.approx(ratio, rel=1e-6)


def test_what_explains_theta_is_shown(page: str, hostile: ModelEmbedding) -> None:
    shown = html.unescape(without_scripts(page))
    thetas, kinds = hostile.thetas.double().numpy(), hostile.metadata["kind"].to_numpy()
    within = sum(((thetas[kinds == k] - thetas[kinds == k].mean(0)) ** 2).sum() for k in set(kinds))
    share = 1 - within / ((thetas - thetas.mean(0)) ** 2).sum()
    start = shown.index('<table id="attribution-table"')
    row = shown[shown.index('<th scope="row">kind', start) :]
    values = [float(value) for value in re.findall(r'data-value="([^"]*)"', row)[:2]]
    assert values[1] == pytest.approx(share, abs=1e-6)
    assert 'id="attribution-plot-data"' in page


def test_labels_choose_colours_and_groups(hostile: ModelEmbedding, tmp_path: Path) -> None:
    path = dp.write_report(hostile, tmp_path / "report.html", labels="<u>size</u>")
    page = path.read_text(encoding="utf-8")
    points = json.loads(re.search(r'id="scatter-data">(.*?)</script>', page)[1])  # type: ignore[index]
    assert points["columns"][points["first"]]["name"] == "<u>size</u>"
    assert '3 <span class="note">&lt;u&gt;size&lt;/u&gt;</span>' in page


def test_what_does_not_apply_says_why(embed: Embed, tmp_path: Path) -> None:
    path = dp.write_report(embed(["one", "two"]), tmp_path / "report.html")
    shown = html.unescape(without_scripts(path.read_text(encoding="utf-8")))
    assert "there are no targets" in shown
    assert "at least 3 models" in shown
    assert "at least 10 networks at distinct places" in shown
    assert "no metadata" in shown
    assert "Expected a column that differs between models: there is none" in shown


def test_labels_that_cannot_be_averaged_say_why(hostile: ModelEmbedding, tmp_path: Path) -> None:
    path = dp.write_report(hostile, tmp_path / "report.html", labels="score")
    shown = html.unescape(without_scripts(path.read_text(encoding="utf-8")))
    assert "Not averaged by score: Expected a label for every model" in shown
    assert 'all <span class="note">all models</span>' in shown


def test_columns_that_are_not_compared_say_why(page: str) -> None:
    shown = html.unescape(without_scripts(page))
    assert "score (missing for some models)" in shown
    assert "same (the same for every model)" in shown


def test_poor_fits_are_warned_of_first(page: str) -> None:
    shown = without_scripts(page)
    assert shown.index('class="cautions"') < shown.index('class="tiles"')
    assert "Only 5 samples" in shown


def test_equal_thetas_still_make_a_report(hostile: ModelEmbedding, tmp_path: Path) -> None:
    still = dataclasses.replace(hostile, thetas=hostile.thetas * 0 + 1)
    path = dp.write_report(still, tmp_path / "report.html")
    assert "all equal" in path.read_text(encoding="utf-8")


def test_files_are_replaced_only_if_told(hostile: ModelEmbedding, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("mine")
    with pytest.raises(StoreExists, match="overwrite=True"):
        dp.write_report(hostile, path)
    assert path.read_text() == "mine"
    assert dp.write_report(hostile, str(path), overwrite=True) == path
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert list(tmp_path.iterdir()) == [path]


def test_bad_places_and_labels(hostile: ModelEmbedding, tmp_path: Path) -> None:
    with pytest.raises(StoreExists, match="folder"):
        dp.write_report(hostile, tmp_path, overwrite=True)
    with pytest.raises(StoreNotFound, match="no folder"):
        dp.write_report(hostile, tmp_path / "nowhere" / "report.html")
    with pytest.raises(UnknownName, match="'kind'"):
        dp.write_report(hostile, tmp_path / "report.html", labels="kinds")
    nothing: Any = "embedding/"
    with pytest.raises(InvalidInput, match="load_embedding"):
        dp.write_report(nothing, tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


@dataclasses.dataclass(frozen=True)
class Foreign:
    """A plugin's result, which is no TableResult and has no origin."""

    frame: pd.DataFrame
    name: str = "my_<i>analysis</i>"

    def to_dataframe(self) -> pd.DataFrame:
        return self.frame

    def plot(self) -> go.Figure:
        return go.Figure(go.Scatter(x=[1, 2], y=[3, 4]))

    def summary(self) -> dict[str, Any]:
        return {"<best>": "<script>alert(2)</script>", "none": None}


def test_further_results_have_sections(hostile: ModelEmbedding, tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "<name>": [HOSTILE, None] + ["x"] * 98,
            "value": np.arange(100) / 7,
            "good": True,
            "many": [[1, 2]] * 100,
            "odd": [np.nan, np.inf] * 50,
        }
    )
    null = dp.analyse("null", hostile, labels="kind", permutations=9, seed=5)
    results = [null, Foreign(frame), Foreign(frame.set_index("value"))]
    path = dp.write_report(hostile, tmp_path / "report.html", results=results)
    page = path.read_text(encoding="utf-8")
    shown = without_scripts(page)
    for place, title in ((1, "Null"), (2, "My &lt;i&gt;analysis&lt;/i&gt; (1)")):
        assert f'<section id="result-{place}" aria-labelledby="result-{place}-title">' in shown
        assert f'<a href="#result-{place}">{title}</a>' in shown
        assert f'<h2 id="result-{place}-title">{title}</h2>' in shown
        assert f'id="result-{place}-plot-data"' in page
    first, second, third = re.findall(r'<section id="result-.*?</section>', shown, flags=re.DOTALL)
    assert "doi:10.2202/1544-6115.1585" in first
    assert "<dt>seed</dt><dd>5</dd>" in first
    assert "<dt>labels</dt><dd>kind</dd>" in first
    assert second.count("<tr>") == 51
    assert "first 50 of 100 rows" in second
    assert "not recorded" in second
    assert html.escape(HOSTILE) in second
    assert "&lt;script&gt;alert(2)" in second
    assert "<script>alert" not in page
    assert third.count('<th scope="col">') == 5
    assert "another embedding" not in shown
    assert page.count("<script>") == 2


def test_results_of_another_embedding_are_warned_of(
    hostile: ModelEmbedding, embed: Embed, tmp_path: Path
) -> None:
    other = dp.analyse("components", embed(["one", "two", "three"]))
    path = dp.write_report(hostile, tmp_path / "report.html", results=[other])
    shown = html.unescape(without_scripts(path.read_text(encoding="utf-8")))
    assert "“Components” was computed from another embedding than this one (inputs, models" in shown
    nothing: Any = ["text"]
    with pytest.raises(InvalidInput, match="str, which lacks to_dataframe"):
        dp.write_report(hostile, tmp_path / "other.html", results=nothing)
    with pytest.raises(InvalidInput, match="results="):
        dp.write_report(hostile, tmp_path / "other.html", results=other)  # type: ignore[arg-type]


@pytest.mark.slow
def test_hundreds_of_models_fit_into_a_small_file(embed: Embed, tmp_path: Path) -> None:
    ids = [f"model-{index:03d}" for index in range(500)]
    metadata = {name: {"kind": "ab"[i % 2], "x": float(i)} for i, name in enumerate(ids)}
    embedding = embed(ids, metadata=metadata, targets=np.arange(24) % 2)
    path = dp.write_report(embedding, tmp_path / "report.html")
    assert path.stat().st_size < 8e6
