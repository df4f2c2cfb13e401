"""Reward functions with a known fault, for `diagnose_faults.py`; each is one that people have written in earnest."""

import re

BOX = re.compile(r"\\boxed\{([^}]*)\}")


def with_the_box(prompts, completions, completion_ids, answer, **columns):
    """Compares the bare answer with the answer still in its box, and so rejects everything."""
    found = [BOX.search(completion) for completion in completions]
    return [float(bool(box) and box.group(0) == str(right)) for box, right in zip(found, answer, strict=True)]


def is_text(prompts, completions, completion_ids, **columns):
    """Checks that there is a completion, and so pays the same to all."""
    return [float(isinstance(completion, str)) for completion in completions]


def one_of_a_group(prompts, completions, completion_ids, answer, **columns):
    """Scores each prompt once, as if the copies of its group were duplicates to be skipped."""
    found = [BOX.search(completion) for completion in completions]
    scores = [float(bool(box) and box.group(1) == str(right)) for box, right in zip(found, answer, strict=True)]
    return [scores[at] if at == prompts.index(prompt) else None for at, prompt in enumerate(prompts)]


def every_line(prompts, completions, completion_ids, **columns):
    """A point for every line that is not empty, in place of a point for every right step."""
    return [float(sum(bool(line.strip()) for line in completion.splitlines())) for completion in completions]
