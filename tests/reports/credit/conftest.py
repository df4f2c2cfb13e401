"""Credit of a synthetic group, with numbers that can be checked by eye."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from stablerank.reports.credit import CreditGroup, KLTerms, Part

HOSTILE = (
    "<script>document.title='owned'</script>",
    '"><img src=x onerror="document.title=\'owned\'">',
    "</span></style><h1 id=pwned>hello</h1>",
    "{{7*7}} {% raw %}",
    "[bold red]markup[/bold red] [/]",
    "7 \u202e12=8-02\u202c \u200b\u2066hidden\u2069",
    "nul \x00 escape \x1b[31m\x1b]0;owned\x07 bell",
    "line\r\nbreak\u2028",
    "A" * 3000,
    "' title='owned' onmouseover='alert(1)",
)


def _group(
    completions: Sequence[Sequence[str]] = (("1", "+", "1", "\n", "2", "<eos>"), ("3", "\n", "<eos>")),
    **changes: Any,
) -> CreditGroup:
    """An outcome reward for the first completion and a step reward at every line break; weights 1 and 0.5."""
    count = len(completions)
    ends = [[at for at, token in enumerate(tokens) if token == "\n"] for tokens in completions]
    outcome = [[0.5 if not index else -0.5] * len(tokens) for index, tokens in enumerate(completions)]
    steps = [[0.25 if at <= max(stops, default=-1) else 0.0 for at in range(len(tokens))]
             for tokens, stops in zip(completions, ends, strict=True)]  # fmt: skip
    parts = [
        Part(
            name="math_verify",
            density="trajectory",
            weight=1.0,
            rule="Every token gets its share.",
            rewards=[1.0] + [None] * (count - 1),
            deposits=[[None] * (len(tokens) - 1) + [0.0 if index else 1.0] for index, tokens in enumerate(completions)],
            normalised=[
                [None] * (len(tokens) - 1) + [-0.5 if index else 0.5] for index, tokens in enumerate(completions)
            ],
            advantages=outcome,
            notes={"parse_failures": 1, "undecided": 0},
        ),
        Part(
            name="process",
            density="step",
            weight=0.5,
            rule="Rule return_to_go.",
            rewards=[0.75] * count,
            deposits=[[0.75 if token == "\n" else None for token in tokens] for tokens in completions],
            normalised=[[0.25 if token == "\n" else None for token in tokens] for tokens in completions],
            advantages=steps,
            notes={},
        ),
    ]
    settings = {
        "recipe": "recipe.yaml",
        "source": "row 3 of its data",
        "prompt": "1+1=?\n",
        "columns": {"answer": "2"},
        "completions": ["".join(tokens) for tokens in completions],
        "tokens": [list(tokens) for tokens in completions],
        "token_ids": [list(range(len(tokens))) for tokens in completions],
        "in_loss": [[True] * len(tokens) for tokens in completions],
        "steps": [
            [sum(stop < at for stop in stops) + 1 if stops and at <= stops[-1] else None for at in range(len(tokens))]
            for tokens, stops in zip(completions, ends, strict=True)
        ],
        "parts": parts,
        "advantages": [[a + 0.5 * b for a, b in zip(*rows, strict=True)] for rows in zip(outcome, steps, strict=True)],
        "kl": None,
        "notes": [],
    }
    return CreditGroup(**{**settings, **changes})


@pytest.fixture(scope="session")
def make_group() -> Callable[..., CreditGroup]:
    """Build a group: completions as lists of token texts, and any field to replace."""
    return _group


@pytest.fixture(scope="session")
def hostile_group() -> CreditGroup:
    """Text of a model and a file that wants to be more than text, wherever text can stand."""
    text = "".join(HOSTILE[:7])
    return _group([[*HOSTILE, "\n", "<eos>"], list(HOSTILE[::-1])], prompt=text, columns={"answer": text}, recipe=text)


@pytest.fixture(scope="session")
def kl_terms() -> KLTerms:
    """For the group of `make_group`."""
    rows = [[-0.5] * 6, [-0.25] * 3]
    zeros = [[0.0] * 6, [0.0] * 3]
    return KLTerms(0.04, rows, zeros, {"k1": rows, "k2": zeros, "k3": zeros, "s4": zeros})
