"""The page in a real browser: it renders, it is silent, and model text stays text."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from stablerank.reports.html import write_report

pytest.importorskip("selenium.webdriver", reason="selenium, which drives Chromium, is not installed")

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="chromium or chromedriver is not installed (Debian: chromium chromium-driver)"
    ),
]


@pytest.fixture(scope="module")
def report(shared_run: Path) -> Path:
    return write_report(shared_run)


def elements(page: Any, selector: str) -> list[Any]:
    found: list[Any] = page.find_elements("css selector", selector)
    return found


def test_headings_and_every_figure_render(page: Any) -> None:
    (headline,) = elements(page, "h1")
    assert " ".join(headline.text.split()) == "Training raised pass@1 from 38.3 % to 67.2 %"
    assert len(elements(page, "h2")) == 9
    drawn = elements(page, "figure svg")
    assert len(drawn) == 1 + 8 + 1 + 1 + 8
    for drawing in [*drawn, *elements(page, "h2")]:
        assert drawing.size["width"] > 100 and drawing.size["height"] > 20
    axes = [text.text for text in elements(page, "svg text")]
    assert axes.count("optimiser step") == 1 + 8 + 1 + 8


def test_the_console_is_silent_and_nothing_but_the_file_is_requested(page: Any) -> None:
    assert page.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    requests = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert page.current_url in requests
    assert {url for url in requests if not url.startswith("data:")} == {page.current_url}


def test_no_script_of_a_rollout_runs_and_its_text_is_readable(page: Any) -> None:
    from selenium.common.exceptions import NoAlertPresentException

    for closed in elements(page, "details:not([open]) > summary"):
        closed.click()
    assert page.title == "demo · stablerank report"
    with pytest.raises(NoAlertPresentException):
        _ = page.switch_to.alert
    assert not elements(page, "#pwned, script, #examples img, #examples a")
    text = page.find_element("css selector", "#examples").text
    for shown in ('<script>document.title="owned"</script>', "<U+0000>", "{{7*7}} {% raw %} ${7*7}"):
        assert shown in text


def test_the_policy_would_stop_a_script_that_slipped_through(page: Any) -> None:
    page.execute_script(
        "const s = document.createElement('script'); s.textContent = 'document.title = \"owned\"';"
        "document.body.append(s);"
    )
    assert page.title == "demo · stablerank report"
    assert any("Content Security Policy" in entry["message"] for entry in page.get_log("browser"))


@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_fits_its_window(page: Any, width: int) -> None:
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    )
    overhang = "const root = document.documentElement; return root.scrollWidth - root.clientWidth"
    assert page.execute_script("return innerWidth") == width and page.execute_script(overhang) == 0
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_figures_follow_the_colour_scheme(page: Any, scheme: str) -> None:
    page.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    label = "return getComputedStyle(document.querySelector('svg text')).fill.match(/\\d+/g).map(Number)"
    surface = "return getComputedStyle(document.body.parentElement).backgroundColor.match(/\\d+/g).map(Number)"
    ink, paper = sum(page.execute_script(label)), sum(page.execute_script(surface))
    assert (ink < paper) == (scheme == "light") and abs(ink - paper) > 200
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
