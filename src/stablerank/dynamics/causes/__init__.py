"""Causes: what went wrong in a run, told from its rows. One file a family of rules, `explain` ranks what they say."""
