"""Where the command begins: ``greeter`` and ``python -m greeter`` are the same, and so is this file by its
path, as workers have it."""

import os
import sys

if not __package__:  # by its path: this very greeter then, whether it is installed or not
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if here not in sys.path:
        sys.path.insert(0, here)

from greeter.system import interrupt
from greeter.system.standard_streams import occupy_standard_streams


def main() -> None:
    """The console script."""
    interrupt.take_signals()  # before anything else is loaded, which takes a while
    occupy_standard_streams()
    from greeter.cli import cli

    cli.main()


if __name__ == "__main__":
    main()
