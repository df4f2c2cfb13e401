"""Embedded and fetched models: files and loaders. The making is in ``scripts/make_zoo.py``."""
