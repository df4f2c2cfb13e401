"""Evaluation: greedy held-out accuracy, pass@k and the intervals that belong to them. One question a file."""
