"""For every test: no first factors in the user's own cache, and Ctrl-C reaches what a test starts."""

import os
import signal

os.environ["STABLERANK_FACTORS_GB"] = "0"
# A worker of pytest-xdist ignores it, and so would every process that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
