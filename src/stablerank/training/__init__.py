"""Training runs: the recipe, TRL's trainer behind one seam, telemetry, and resumption."""
