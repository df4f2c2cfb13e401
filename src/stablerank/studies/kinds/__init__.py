"""What cells do, one kind a file: `stablerank.studies.cells` calls them by name."""
