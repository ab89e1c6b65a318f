"""``python -m greeter`` is the same as ``greeter``, and so is this file by its path, as workers have it."""

import sys
from pathlib import Path

if not __package__:  # by its path: this very greeter then, whether it is installed or not
    here = str(Path(__file__).absolute().parents[1])
    if here not in sys.path:
        sys.path.insert(0, here)

from greeter.cli import main

main()
