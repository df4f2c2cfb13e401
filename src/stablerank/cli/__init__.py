"""The command line. One thin file a verb; heavy libraries load inside a verb, never for ``--help``."""

import logging
import sys


def main() -> None:
    """Run the command line; a `StablerankError` becomes one sentence and exit code 2."""
    from stablerank.cli.app import app
    from stablerank.errors import StablerankError

    # It speaks while it is imported, and PEFT imports it wherever it is installed.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        app()
    except StablerankError as error:
        print(f"stablerank: {error}", file=sys.stderr)
        raise SystemExit(2) from None
