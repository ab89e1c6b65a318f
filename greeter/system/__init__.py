"""What the operating system provides: listening sockets, event loops, TLS contexts, signals, descriptors.

Entry points: ``open_listeners`` (listeners.py), ``run`` (loops.py), ``server_context`` and ``client_context``
(tls.py), ``connection_capacity`` (fdlimit.py), ``broadcast`` (broadcasts.py).

Must not import: any greeter module but ``core`` and ``errors``.
"""
