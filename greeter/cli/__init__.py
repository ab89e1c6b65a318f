"""Parse a command, run it, print, exit.

The only place that prints and exits: cli.py has the commands, commandline.py makes click's options from
those in ``config``, loadcommand.py runs the load tester, demo.py the demonstration.

Entry point: ``main`` (cli.py).

Must not import: nothing is above it but ``greeter.__main__``, which starts it.
"""
