"""Rewards that know nothing of the answer, to hold others against; for `sr_grpo.py`."""

import hashlib
from functools import cache
from statistics import fmean

import numpy as np
from transformers import AutoTokenizer

from stablerank.tasks.arithmetic import problems
from stablerank.zoo.resolve import resolve


def longer(prompts, completions, completion_ids, **columns):
    """A point for every token: what a reward that only follows length would pay."""
    return [float(len(ids)) for ids in completion_ids]


def right_length(prompts, completions, completion_ids, **columns):
    """How near a completion comes to the usual length, whatever the question."""
    return [-abs(len(ids) - usual_length()) for ids in completion_ids]


@cache
def usual_length() -> float:
    """Mean tokens of a worked training solution, its end token among them."""
    tokenizer = AutoTokenizer.from_pretrained(resolve("zoo:arith-student"))
    return fmean(
        len(tokenizer(problem.solution, add_special_tokens=False).input_ids) + 1 for problem in problems("train", 400)
    )


def chance(prompts, completions, completion_ids, **columns):
    """Normal noise, new for every batch: a fixed function of a text could be learnt, this cannot.

    Its seed is the batch itself, so that a resumed run draws the same.
    """
    digest = hashlib.sha256(repr((prompts, completions)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little")).normal(size=len(completions)).tolist()
