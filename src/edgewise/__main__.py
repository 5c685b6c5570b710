"""`python -m edgewise`, and the `edgewise` program: what comes before the first import of the command line.

Libraries are imported for a second or two; ctrl-C in the middle of that is an interrupt like any other, not a traceback.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Runs the command line of this process, and ends it."""
    try:
        from edgewise.cli.main import main as run_and_leave

        run_and_leave()
    except KeyboardInterrupt:
        print("error [interrupted]: interrupted; nothing was begun.", file=sys.stderr, flush=True)
        os._exit(130)


if __name__ == "__main__":
    main()
