"""The page of a group's credit in a real browser: coloured, silent, within its window, and text stays text."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from stablerank.reports.credit import CreditGroup
from stablerank.reports.credit_html import write_credit_page

pytest.importorskip("selenium.webdriver", reason="selenium, which drives Chromium, is not installed")

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="chromium or chromedriver is not installed (Debian: chromium chromium-driver)"
    ),
]


@pytest.fixture(scope="module")
def report(hostile_group: CreditGroup, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_credit_page(tmp_path_factory.mktemp("credit") / "page.html", hostile_group)


def elements(page: Any, selector: str) -> list[Any]:
    found: list[Any] = page.find_elements("css selector", selector)
    return found


def test_tokens_have_colours_and_strips_have_bars(page: Any) -> None:
    colours = {token.value_of_css_property("background-color") for token in elements(page, ".tokens .token")}
    assert len(colours) >= 2 and "rgba(0, 0, 0, 0)" not in colours
    bars = elements(page, ".strip rect")
    assert len(bars) >= 4 and all(bar.size["width"] > 1 and bar.size["height"] >= 1 for bar in bars)


def test_the_console_is_silent_and_nothing_but_the_file_is_requested(page: Any) -> None:
    assert page.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    requests = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert {url for url in requests if not url.startswith("data:")} == {page.current_url}


def test_text_of_a_model_stays_text(page: Any) -> None:
    assert page.title.endswith("stablerank inspect-reward") and not elements(page, "script, #pwned, img")
    assert "<script>document.title='owned'</script>" in page.find_element("css selector", ".tokens").text
    page.execute_script(
        "const s = document.createElement('script'); s.textContent = 'document.title = \"owned\"';"
        "document.body.append(s);"
    )
    assert page.title.endswith("stablerank inspect-reward")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_ink_is_readable_on_every_shade(page: Any, scheme: str) -> None:
    """WCAG contrast of at least 4.5 for the text of every token, composed over the card it stands on."""
    page.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    worst = page.execute_script(
        """
        const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
        const painted = (...colours) => {
            for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
            return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
        };
        const light = rgb => rgb.map(c => c / 255).map(c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
            .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
        const card = getComputedStyle(document.querySelector(".completion")).backgroundColor;
        return Math.min(...[...document.querySelectorAll(".shades .colours i")].map(shade => {
            const style = getComputedStyle(shade);
            const ink = getComputedStyle(document.body).color;
            const [a, b] = [light(painted(card, style.backgroundColor)), light(painted(ink))];
            return (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
        }));
        """
    )
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert worst >= 4.5


@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_fits_its_window(page: Any, width: int) -> None:
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    )
    overhang = "const root = document.documentElement; return root.scrollWidth - root.clientWidth"
    assert page.execute_script("return innerWidth") == width and page.execute_script(overhang) == 0
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
