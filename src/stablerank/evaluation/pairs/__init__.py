"""Scores against preferences: accuracy with intervals, ties, matched lengths, and the protocol of RewardBench."""
