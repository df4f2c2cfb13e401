"""Figures: what is drawn, what is named instead, and that drawing twice gives the same bytes."""

import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stablerank.reports import figures, geometry, geometry_figures
from stablerank.reports.read import UpdateRanks, read_run
from stablerank.reports.svg import ROLES, Picture


def all_pictures(path: Path) -> list[Picture]:
    run = read_run(path)
    curve = figures.learning_curve(run)
    assert curve is not None and run.ranks is not None
    grids, readings = geometry.grids(run.ranks), geometry.readings(run.ranks)
    return [
        curve,
        *figures.small_multiples(run)[0],
        geometry_figures.mean_against_null(geometry.mean_curve(run.ranks)),
        geometry_figures.colour_bar(grids, geometry.overall(run.ranks)),
        *geometry_figures.heat_maps(grids, readings),
    ]


@pytest.fixture(scope="module")
def pictures(shared_run: Path) -> list[Picture]:
    return all_pictures(shared_run)


def test_drawing_twice_gives_the_same_bytes(shared_run: Path, pictures: list[Picture]) -> None:
    assert [p.svg for p in all_pictures(shared_run)] == [p.svg for p in pictures]


def test_every_figure_is_sound_xml_with_a_spoken_text_and_follows_the_page(pictures: list[Picture]) -> None:
    for picture in pictures:
        root = ElementTree.fromstring(picture.svg)
        assert root.get("aria-label") == picture.alt and root.get("role") == "img"
        assert root.get("viewBox") and not root.get("width")
        assert not any(colour in picture.svg for colour in ROLES)
        assert "var(--" in picture.svg


def test_ids_are_unique_over_the_page_and_every_reference_has_its_target(pictures: list[Picture]) -> None:
    page = "".join(picture.svg for picture in pictures)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', page)) <= {(i, "") for i in ids} | {("", i) for i in ids}


def test_pyplot_is_never_loaded(make_run: Callable[..., Path]) -> None:
    """In a process of its own: here, another test's library may have loaded it."""
    draws = (
        "import sys; from pathlib import Path; from stablerank.reports import figures, read; "
        "assert figures.learning_curve(read.read_run(Path(sys.argv[1]))); print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", draws, str(make_run())], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_column_that_was_not_recorded_is_named(make_run: Callable[..., Path]) -> None:
    drawn, missing = figures.small_multiples(read_run(make_run(kl=False)))
    assert missing == ["KL to the reference"]
    assert len(drawn) == len(figures.PANELS) - 1


def test_nothing_evaluated_draws_nothing(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"recipe": {}}')
    assert figures.learning_curve(read_run(tmp_path)) is None


def test_a_null_outside_the_colour_scale_is_still_shown(pictures: list[Picture]) -> None:
    bar = next(picture for picture in pictures if picture.name == "colour-bar")
    assert "random updates 9.30 →" in bar.svg


def test_a_module_may_be_called_anything() -> None:
    ranks = UpdateRanks(
        step_R=np.array([10]),
        layer_R=np.array([0]),
        module_R=np.array(['$\\frac{<b>&"']),
        value_R=np.array([2.0]),
        null_R=np.array([np.nan]),
        null_low_R=np.array([np.nan]),
        null_high_R=np.array([np.nan]),
    )
    (picture,) = geometry_figures.heat_maps(geometry.grids(ranks), geometry.readings(ranks))
    ElementTree.fromstring(picture.svg)
    assert picture.caption == "no null recorded"


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60), st.sampled_from([1, 3, 5, 9]))
def test_running_mean_agrees_with_pandas(values: list[float], window: int) -> None:
    if len(values) < window:
        return
    expected = pd.Series(values).rolling(window, center=True, min_periods=1).mean()
    np.testing.assert_allclose(figures.running_mean(np.array(values), window), expected, rtol=1e-6, atol=1e-6)


def test_cells_meet_half_way_between_uneven_steps() -> None:
    assert geometry_figures.edges(np.array([10.0, 20.0, 24.0])).tolist() == [5.0, 15.0, 22.0, 26.0]
    assert geometry_figures.edges(np.array([10.0])).tolist() == [9.5, 10.5]
