"""The command line: `turnstream fold | events | watch | demo | serve`.

Owns arguments, exit statuses and what stands on standard error. Refuses to know formats and sessions: each command is a
few lines over the package. Invariants: 1. `fold` and `events` load neither rich nor httpx; 2. an error of this package
or of the system is one line on standard error and status 1, never a traceback.
"""

import sys

__all__ = ["main"]


def main() -> None:
    """What the `turnstream` command runs."""
    try:
        from turnstream.cli.app import app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "typer":
            raise
        sys.exit("turnstream: the command line needs typer: pip install 'turnstream[cli]'")
    app(prog_name="turnstream")
