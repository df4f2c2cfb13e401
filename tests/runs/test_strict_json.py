"""Values that strict JSON takes."""

import json
import math

from stablerank.runs.strict_json import strict


def test_what_is_not_finite_is_null_however_deep() -> None:
    raw = {"a": math.nan, "b": [1.5, (math.inf, {"c": -math.inf})], "d": True, "e": 3, "f": "nan"}
    expected = {"a": None, "b": [1.5, [None, {"c": None}]], "d": True, "e": 3, "f": "nan"}
    assert json.loads(json.dumps(strict(raw), allow_nan=False)) == expected == strict(raw)
