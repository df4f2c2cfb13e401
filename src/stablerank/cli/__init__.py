"""The command line. One thin file a verb; heavy libraries load inside a verb, never for ``--help``."""

import sys

INTERRUPTED = 130
"""Exit code after Ctrl-C, as typer and every shell have it."""


def main() -> None:
    """Run the command line; a `StablerankError` becomes one sentence and exit code 2."""
    from stablerank.cli.app import app
    from stablerank.errors import StablerankError

    try:
        app()
    except StablerankError as error:
        print(f"stablerank: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except SystemExit as ended:
        if ended.code == INTERRUPTED:
            print(
                "stablerank: interrupted; `stablerank train --resume RUN` goes on from the last checkpoint.",
                file=sys.stderr,
            )
        raise
