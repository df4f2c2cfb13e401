"""Credit: from deposits to per-token advantages."""
