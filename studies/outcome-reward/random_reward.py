"""A reward without information: a fair coin a completion, the same for the same text."""

import hashlib


def noise(prompts, completions, completion_ids, **columns):
    """1.0 or 0.0 by the first bit of a hash of prompt and completion."""
    return [
        float(hashlib.sha256(f"{prompt}\0{completion}".encode()).digest()[0] & 1)
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
