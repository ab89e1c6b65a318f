"""Every option once: its default, its type, its check, and where its value comes from.

An option is a field of a dataclass in options.py. Its flag, environment variable and TOML key are made from
the field. values.py parses texts, sources.py loads greetings from files and modules, and loading.py
turns the options of ``greeter serve`` into the configuration of a server, at the start and at every reload.

Entry points: ``ServeOptions`` and its siblings (options.py), ``load_server_config`` (loading.py).

Must not import: ``service`` and ``cli``.
"""
