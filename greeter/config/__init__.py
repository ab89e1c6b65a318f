"""Every option once: its default, its type, its check, and where its value comes from.

An option is a field of a dataclass in options.py; the command line, the environment and the TOML file are
made from it (values.py checks, sources.py reads files and applications). prepare.py turns the options of
``greeter serve`` into what a server needs, at the start and at every reload.

Entry points: ``ServeOptions`` and its siblings (options.py), ``prepare`` (prepare.py).

Must not import: ``service`` and ``cli``.
"""
