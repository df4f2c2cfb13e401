"""Checkpoints on disk: which tensors they hold, which matrices those are, and what cannot be read."""
