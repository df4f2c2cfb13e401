import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stablerank.rewards.code.extraction import python_code


@pytest.mark.parametrize(
    ("completion", "code"),
    [
        ("```python\na = 1\n```", "a = 1"),
        ("first\n```py\na\n```\nthen\n```python3\nb\n```\nend", "b"),
        ("```python\na\n```\nprints\n```\n3\n```", "a"),
        ("```\na\n```\n```text\nb\n```", "a"),
        ("```Python title=x\na\n```", "a"),
        ("~~~python\na = '''\n```\n'''\n~~~", "a = '''\n```\n'''"),
        ("````python\n```\n````", "```"),
        ("1. so\n   ```python\n   a\n   ```", "   a"),
        ("```python\na\n```\n```python\ncut off", "a"),
        ("```python\ncut off", None),
        ("```cpp\nint a;\n```", None),
        ("print(1)", None),
        ("", None),
    ],
)
def test_the_last_closed_python_block(completion, code):
    assert python_code(completion) == code


@given(st.lists(st.sampled_from(["```", "```python", "~~~", "x", "", "    ```", "```js", "` ` `"])))
def test_any_text_is_read(lines):
    text = "\n".join(lines)
    found = python_code(text)
    assert found is None or found in text


@pytest.mark.parametrize("piece", ["`", "```\n", "```python\n", "~", " ", "\t```", "```python "])
def test_a_million_characters_take_no_time(piece):
    started = time.perf_counter()
    python_code(piece * (1_000_000 // len(piece)))
    assert time.perf_counter() - started < 2
