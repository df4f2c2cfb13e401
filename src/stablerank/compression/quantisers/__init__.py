"""From values to codes of a few bits and back, one algorithm a file."""
