"""The checks, one small function each. Importing this package registers them, in the order in which they run.

Gentle checks come first, resets and bursts later, and those that stop the service last.

Must not import: what ``greeter.conformance`` must not.
"""

from greeter.conformance.checks import greeting, speaking, holding, idle, tls, proxy, bursts  # noqa: F401, I001  # in their order
