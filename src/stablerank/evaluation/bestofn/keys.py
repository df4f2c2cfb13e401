r"""Which answers say the same: final answers, and the classes that a majority vote counts.

A final answer is the last ``\boxed{}``, else the last ``<answer>``, else the last number, or the last line where
answers are no numbers (rewards/gym.py). Equal texts are equal answers; others are compared by ``math_verify`` with the
first member of each class, in order of appearance, in a process of its own (rewards/verifier.py). Which answer is right
takes no part in it.

Cost: about a millisecond a comparison, at most one a pair of classes.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

from stablerank.rewards.gym import final_answer
from stablerank.rewards.outcome import REMEMBERED_VERDICTS
from stablerank.rewards.verifier import Verifier

Equal = Callable[[str, str], bool]
_A_NUMBER = "0"


def final_answers(responses: Sequence[str | None], gold: str | None) -> tuple[str, ...]:
    """The final answer of each response, empty where there is none; ``gold`` says only whether answers are numbers.

    Without a gold answer they are read as numbers.
    """
    return tuple(" ".join(final_answer(text or "", gold or _A_NUMBER).split()) for text in responses)


def by_math_verify() -> Equal:
    """Equality of two final answers, remembered."""
    verdict = lru_cache(maxsize=REMEMBERED_VERDICTS)(Verifier().verdict)
    return lambda first, second: verdict(first, f"\\boxed{{{second}}}") == "right"


def answer_classes(keys: Sequence[str], equal: Equal) -> list[int | None]:
    """A number a class of equal final answers, in order of appearance; None for an empty one."""
    firsts: list[str] = []
    class_of: dict[str, int | None] = {"": None}
    for key in keys:
        if key not in class_of:
            known = next((number for number, first in enumerate(firsts) if equal(first, key)), None)
            if known is None:
                firsts.append(key)
            class_of[key] = len(firsts) - 1 if known is None else known
    return [class_of[key] for key in keys]
