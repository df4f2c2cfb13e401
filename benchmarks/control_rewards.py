"""Rewards that know nothing of the answer, to hold others against; for `sr_grpo.py`."""

import hashlib

import numpy as np


def longer(prompts, completions, completion_ids, **columns):
    """A point for every token: what a reward that only follows length would pay."""
    return [float(len(ids)) for ids in completion_ids]


def chance(prompts, completions, completion_ids, **columns):
    """Normal noise, new for every batch: a fixed function of a text could be learnt, this cannot.

    Its seed is the batch itself, so that a resumed run draws the same.
    """
    digest = hashlib.sha256(repr((prompts, completions)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little")).normal(size=len(completions)).tolist()
