"""``python -m greeter`` is the same as ``greeter``."""

from greeter.cli import main

main()
