"""The page of a measurement in a real browser: drawn, silent, sortable, and closed to the names it shows."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stablerank.reports.measure import MeasuredRow
from stablerank.reports.measure_html import write_measure_report

pytest.importorskip("selenium.webdriver", reason="selenium, which drives Chromium, is not installed")

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="chromium or chromedriver is not installed (Debian: chromium chromium-driver)"
    ),
]

Rows = tuple[MeasuredRow, ...]


@pytest.fixture(scope="module")
def report(
    hostile_rows: Rows, write_measurement: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The report of a measurement with hostile names."""
    return write_measure_report(write_measurement(tmp_path_factory.mktemp("measured") / "demo", hostile_rows))


def elements(page: Any, selector: str) -> list[Any]:
    found: list[Any] = page.find_elements("css selector", selector)
    return found


def shown(page: Any, selector: str) -> list[Any]:
    return [element for element in elements(page, selector) if element.is_displayed()]


def test_the_heat_map_is_drawn_with_a_word_for_every_cell(page: Any, hostile_rows: Rows) -> None:
    ranks = [row for row in hostile_rows if row.metric == "stable_rank" and row.layer is not None]
    cells = shown(page, ".map .cell rect")
    assert len(cells) == len(ranks)
    assert all(cell.size["width"] >= 10 and cell.size["height"] >= 20 for cell in cells)
    fills = {cell.value_of_css_property("fill") for cell in cells}
    assert len(fills) > 8 and "rgb(0, 0, 0)" not in fills, "classes have colours"
    titles = page.execute_script(
        "return [...document.querySelectorAll('#panel-0 .cell title')].map(t => t.textContent)"
    )
    assert any("model.layers.4.mlp.gate_proj, 160 × 64 bfloat16: 24." in title for title in titles)
    assert len(elements(page, "#depth figure svg")) == 6


def test_the_console_is_silent_and_nothing_but_the_file_is_requested(page: Any) -> None:
    assert page.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    requests = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert {url for url in requests if not url.startswith("data:")} == {page.current_url}


def test_a_metric_is_chosen_without_a_script(page: Any) -> None:
    assert [panel.get_attribute("id") for panel in shown(page, ".panel")] == ["panel-0"]
    page.find_element("css selector", "label[for=metric-1]").click()
    assert [panel.get_attribute("id") for panel in shown(page, ".panel")] == ["panel-1"]
    page.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    page.find_element("css selector", "label[for=metric-2]").click()
    page.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert [panel.get_attribute("id") for panel in shown(page, ".panel")] == ["panel-2"]


def test_the_table_sorts_by_number_and_puts_missing_ones_last(page: Any, hostile_rows: Rows) -> None:
    column = "return [...document.querySelectorAll('.sortable tbody tr')].map(row => row.cells[4].dataset.key)"
    known = sorted(row.value for row in hostile_rows if row.metric == "stable_rank" and row.has_value)
    head = elements(page, ".sortable thead th")[4]
    for order, values in (("ascending", known), ("descending", known[::-1])):
        head.find_element("css selector", "button").click()
        assert head.get_attribute("aria-sort") == order
        keys = page.execute_script(column)
        assert [float(key) for key in keys if key] == values and keys[len(values) :] == ["", ""]


def test_names_stay_text_and_the_policy_stops_a_script_that_slipped_through(page: Any) -> None:
    assert page.title == "demo · stablerank measure" and len(elements(page, "script")) == 1
    assert "<script>document.title='owned'</script>" in page.find_element("css selector", "#matrices").text
    page.execute_script(
        "const s = document.createElement('script'); s.textContent = 'document.title = \"owned\"';"
        "document.body.append(s);"
    )
    assert page.title == "demo · stablerank measure"
    assert any("Content Security Policy" in entry["message"] for entry in page.get_log("browser"))


@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_fits_its_window(page: Any, width: int) -> None:
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    )
    overhang = "const root = document.documentElement; return root.scrollWidth - root.clientWidth"
    assert page.execute_script("return innerWidth") == width and page.execute_script(overhang) == 0
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
