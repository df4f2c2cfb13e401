"""`python -m stablerank`, which is also what `accelerate launch -m stablerank` runs."""

from stablerank.cli import main

main()
