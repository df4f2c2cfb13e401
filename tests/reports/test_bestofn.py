"""The page and the text of a best-of-n: every number is there, and names stay text."""

import json
import re

import pytest

from stablerank.choosing import best_of_n
from stablerank.errors import RunFolderError
from stablerank.evaluation.bestofn.pools import Pool, Problem
from stablerank.reports.bestofn import page, text, write_bestofn_report
from stablerank.reports.bestofn_figures import panels

TEXTS = ("a", "bb", "ccc", "dddd")


def pool(name="own", rights=((0.0, 0.0, 1.0, 1.0), (0.0, 1.0, 0.0, 1.0), (0.0, 0.0, 0.0, 1.0))):
    return Pool(name, tuple(Problem(str(at), TEXTS, right, ("1", "2", "2", "")) for at, right in enumerate(rights)))


@pytest.fixture(scope="module")
def results():
    return best_of_n(pool(), ("longer", "random:seed=3")).results()


def test_the_text_has_every_chooser_and_its_differences(results):
    lines = text(results).splitlines()
    assert lines[0] == "own: 3 problems, 12 answers, 2.5 characters each"
    assert lines[1].startswith("headroom: oracle minus random at N = 4 is 0.583")
    for name in ("longer", "random:seed=3", "(random)", "(majority)", "(shortest)", "(longest)", "(oracle)"):
        accuracy, difference = (line for line in lines if line.startswith(f"{name} "))
        assert accuracy.count(" to ") == 3
        assert difference.count(" to ") == 4 - (name in ("(random)", "(majority)", "(shortest)", "(longest)"))
    (longest,) = (line for line in lines if re.match(r"longer .* 4\.0$", line))
    assert "100.0 (" in longest
    assert any(line.startswith("cost of longer: ") for line in lines)
    assert "answers without a final answer, which abstain: 3" in lines


def test_one_panel_a_scorer(results):
    drawn = panels(results)
    assert [picture.title for picture in drawn] == ["longer", "random:seed=3"]
    assert "at N = 4 100.0 %" in drawn[0].alt
    for picture in drawn:
        for word in ("oracle", "majority", "shortest", "longest", "random", "this scorer"):
            assert f">{word}<" in picture.svg


def test_the_page_is_whole_repeatable_and_asks_for_nothing(results):
    shown = page(results)
    assert shown == page(json.loads(json.dumps(results)))
    assert "Best of 4" in shown and shown.count("<svg") == 2
    assert "default-src 'none'" in shown
    assert "<script" not in shown
    assert "http://" not in re.sub(r'xmlns\S*="\S*"', "", shown)


def test_without_headroom_the_page_shows_the_controls():
    found = best_of_n(pool(rights=((1.0, 1.0, 1.0, 1.0),) * 3), ("longer",)).results()
    (picture,) = panels(found)
    assert picture.title == "controls"
    assert "No headroom" in page(found) and "Beside the controls" not in page(found)
    assert "difference" not in text(found)


def test_names_are_text():
    hostile = "<script>alert(1)</script>\x1b[31m\u202e"
    found = best_of_n(pool(hostile), ("longer",)).results()
    assert "<script" not in page(found)
    assert "\x1b" not in text(found) and "\u202e" not in text(found)


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(RunFolderError, match="no finished best-of-n"):
        write_bestofn_report(tmp_path)
