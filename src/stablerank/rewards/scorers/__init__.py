"""Scorers: one number for a response to a prompt, from geometry, likelihood, length, chance or a judge."""
