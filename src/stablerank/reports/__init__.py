"""Reports read a run folder and nothing else."""
