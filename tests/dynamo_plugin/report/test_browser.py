"""The report in a real browser, offline."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import dynamo_plugin as dp
from dynamo_plugin.embedding import ModelEmbedding

pytestmark = pytest.mark.browser

HOSTILE = "</script><img src=x onerror=alert(1)>"

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs Chromium and its driver (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(executable_path=driver)
    opened = webdriver.Chrome(options=options, service=service)
    try:
        yield opened
    finally:
        opened.quit()


@pytest.fixture(scope="module")
def report(hostile: ModelEmbedding, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dp.write_report(hostile, tmp_path_factory.mktemp("report") / "report.html")


def load(browser: Any, report: Path, *, width: int = 1300, scheme: str = "light") -> None:
    for kind in ("browser", "performance"):
        browser.get_log(kind)  # what an earlier test left
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
    )
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
    )
    browser.get(report.as_uri())
    assert browser.execute_script("return document.documentElement.dataset.ready") == "true"


def scatter(browser: Any) -> list[dict[str, Any]]:
    """Return name, colour and symbol of every trace of the embedding."""
    traces: list[dict[str, Any]] = browser.execute_script(
        "return document.getElementById('scatter').data"
        ".map(t => ({name: t.name, color: t.marker.color, symbol: t.marker.symbol}))"
    )
    return traces


def choose(browser: Any, column: str) -> None:
    browser.execute_script(
        "const select = document.getElementById('colour-by');"
        "select.selectedIndex = [...select.options].findIndex(o => o.text === arguments[0]);"
        "select.dispatchEvent(new Event('change'));",
        column,
    )


def test_loads_without_errors_or_requests(browser: Any, report: Path) -> None:
    load(browser, report)
    assert browser.get_log("browser") == []
    asked = [
        message["params"]["request"]["url"]
        for entry in browser.get_log("performance")
        if (message := json.loads(entry["message"])["message"])["method"]
        == "Network.requestWillBeSent"
    ]
    assert asked
    assert {url.split(":")[0] for url in asked} <= {"file", "data", "blob"}
    drawn = browser.execute_script("return document.querySelectorAll('.js-plotly-plot').length")
    assert drawn == 8


def test_names_are_shown_as_text(browser: Any, report: Path) -> None:
    load(browser, report)
    assert browser.execute_script("return document.querySelectorAll('img').length") == 0
    assert browser.execute_script("return document.querySelectorAll('td b, th b').length") == 0
    heads = browser.execute_script(
        "return [...document.querySelectorAll('#fidelity-table tbody th')].map(c => c.textContent)"
    )
    assert heads[0] == HOSTILE
    choose(browser, "kind")
    legend = browser.execute_script(
        "return [...document.querySelectorAll('#scatter .legendtext')].map(t => t.textContent)"
    )
    assert legend == ["<b>bold</b> & Grüße 漢字", "plain"]
    shown = browser.execute_script(
        "return [...document.querySelectorAll('#distance-map .xtick text')].map(t => t.textContent)"
    )
    assert any(tick.startswith("</script><img") for tick in shown)


def test_hovering_shows_names_as_text(browser: Any, report: Path) -> None:
    load(browser, report)
    shown = browser.execute_script(
        "const plot = document.getElementById('scatter');"
        "const curve = plot.data.findIndex(t => t.text.some(x => x.includes('onerror')));"
        "const point = plot.data[curve].text.findIndex(x => x.includes('onerror'));"
        "Plotly.Fx.hover(plot, [{curveNumber: curve, pointNumber: point}]);"
        "return plot.querySelector('.hovertext').textContent;"
    )
    assert HOSTILE in shown


def test_the_colour_select_changes_the_plot(browser: Any, report: Path) -> None:
    load(browser, report)
    choose(browser, "kind")
    by_kind = scatter(browser)
    assert len({trace["color"] for trace in by_kind}) == 2
    assert len({trace["symbol"] for trace in by_kind}) == 2
    choose(browser, "<u>size</u>")
    assert [trace["name"] for trace in scatter(browser)] == ["3", "5"]
    choose(browser, "score")
    scale, missing = scatter(browser)
    assert scale["color"] == pytest.approx([0.1 * index for index in range(10) if index != 2])
    assert missing["name"] == "(missing)"


def test_the_table_is_sorted_by_a_click(browser: Any, report: Path) -> None:
    load(browser, report)
    read = (
        "return [...document.querySelectorAll('#fidelity-table tbody tr')]"
        ".map(r => Number(r.cells[1].dataset.value))"
    )
    click = "document.querySelectorAll('#fidelity-table th button')[1].click();"
    before = browser.execute_script(read)
    assert browser.execute_script(click + read) == sorted(before)
    assert browser.execute_script(click + read) == sorted(before, reverse=True)


@pytest.mark.parametrize(("width", "scheme"), [(1300, "light"), (1300, "dark"), (400, "light")])
def test_fits_every_width(
    browser: Any, report: Path, tmp_path: Path, width: int, scheme: str
) -> None:
    load(browser, report, width=width, scheme=scheme)
    needed, height = browser.execute_script(
        "const page = document.documentElement; return [page.scrollWidth, page.scrollHeight];"
    )
    assert needed <= width
    clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    shot = browser.execute_cdp_cmd(
        "Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip}
    )
    picture = tmp_path / f"report-{width}-{scheme}.png"
    picture.write_bytes(base64.b64decode(shot["data"]))
    assert picture.stat().st_size > 50_000
