"""Reward by unit tests: the code of a completion runs in a sandbox, its results are judged outside of it."""
