"""Where a greeting comes from when it is named in words: a file, or ``MODULE:NAME``.

The law: a module that is missing and a module that breaks while it is imported are told apart, because
the first is a typing error and the second is a bug elsewhere.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from greeter.errors import ConfigError
from greeter.greeting import Greeting


def greeting_from_file(path: str | Path) -> Greeting:
    """The bytes of a file, as they are. Raises ConfigError if it cannot be read."""
    try:
        return Greeting(Path(path).read_bytes())
    except OSError as error:
        why = error.strerror or str(error)
        raise ConfigError(
            f"cannot read the greeting file {str(path)!r}: {why[:1].lower() + why[1:]}"
        ) from error


def greeting_from_app(spec: str) -> Greeting:
    """The greeting that ``MODULE:NAME`` names: a callable, text, bytes or a Greeting.

    The current directory is searched first. Raises ConfigError that says which part is missing, or
    that the module failed while it was imported, and where.
    """
    module_name, colon, attribute = spec.partition(":")
    if not (module_name and colon and attribute) or module_name.startswith("."):
        raise ConfigError(f"{spec!r} is not of the form MODULE:NAME")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # Its own name, or a package on the way to it; any other missing module is a failure inside it.
        if error.name is not None and (module_name + ".").startswith(error.name + "."):
            raise ConfigError(f"{spec!r}: there is no module {error.name!r}") from error
        raise _broken(spec, module_name, error) from error
    except KeyboardInterrupt:
        raise  # of the person at the terminal
    except BaseException as error:  # SystemExit, and whatever else a module may think of
        raise _broken(spec, module_name, error) from error
    value: object = module
    for name in attribute.split("."):
        try:
            value = getattr(value, name)
        except AttributeError as error:
            raise ConfigError(f"{spec!r}: module {module_name!r} has no {attribute!r}") from error
    try:
        return Greeting(value)  # type: ignore[arg-type]  # it says itself what it does not take
    except ConfigError as error:
        raise ConfigError(f"{spec!r}: {error}") from error


def _broken(spec: str, module: str, error: BaseException) -> ConfigError:
    where = ""
    trace = error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if not file.startswith("<frozen") and file != importlib.__file__ and file != __file__:
            where = f" ({file}, line {trace.tb_lineno})"
        trace = trace.tb_next
    return ConfigError(
        f"{spec!r}: module {module!r} failed while importing: {type(error).__name__}: {error}{where}"
    )
