"""Rewards and credit: a reward deposits numbers on tokens, credit turns deposits into advantages. One reward a file."""
