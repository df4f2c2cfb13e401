"""Distillation: what a stronger model thinks of every sampled token."""
