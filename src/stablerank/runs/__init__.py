"""The run folder: its manifest, its tidy tables, and how both survive a kill."""
