"""Parse a command, run it, print, exit.

No other room prints or exits. cli.py defines the commands, click_options.py makes click's parameters from the
options in ``config``, loadcommand.py runs the load tester, and demo.py the demonstration.

Entry point: ``main`` (cli.py).

Must not import: ``greeter.__main__``, which is the only module above it and starts it.
"""
