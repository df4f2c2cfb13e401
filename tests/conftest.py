"""For every test: no first factors are kept in the user's own cache, here or in a child process."""

import os

os.environ["STABLERANK_FACTORS_GB"] = "0"
