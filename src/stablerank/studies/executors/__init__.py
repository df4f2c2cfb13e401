"""Where the processes of cells run: here, on a Ray cluster, or under Slurm; `seam` is what the runner asks of each."""
