"""Where a greeting comes from when it is named in words: a file, or ``MODULE:NAME``.

The law: a module that is missing and a module that breaks while it is imported are told apart, because
the first is a typing error and the second is a bug elsewhere. What is named again, for a reload, is read
again.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from greeter.core.greeting import Greeting
from greeter.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

# The modules that an app brought in, and what their files were then; those that were here before are not
# imported anew.
_ours: dict[str, tuple[int, ...]] = {}


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

    The current directory is searched first. When a file of what an earlier call imported first has changed,
    it is imported anew, with the rest of its package. Raises ConfigError that says which part is missing, or
    that the module failed while it was imported, and where; what was imported before stays then.
    """
    module_name, colon, attribute = spec.partition(":")
    if not (module_name and colon and attribute) or module_name.startswith("."):
        raise ConfigError(f"{spec!r} is not of the form MODULE:NAME")
    if "" not in sys.path:
        sys.path.insert(0, "")
    with _anew(module_name.partition(".")[0]):
        return _greeting(spec, module_name, attribute)


@contextlib.contextmanager
def _anew(package: str) -> Iterator[None]:
    """Without the modules that are ours, if one has changed. Those of ``package`` are ours afterwards; or,
    after an error, the old ones are here again."""
    importlib.invalidate_caches()  # or a file that has just been written might not be found
    ours = {name for name in sys.modules if any(f"{name}.".startswith(f"{known}.") for known in _ours)}
    # Many a module can be imported only once, so that nothing is done for nothing.
    changed = any(_ours.get(name) != _stamp(name) for name in ours)
    old = {name: sys.modules.pop(name) for name in ours if changed}
    others = set(sys.modules)

    def came() -> set[str]:
        return {name for name in set(sys.modules) - others if f"{name}.".startswith(f"{package}.")}

    try:
        yield
    except BaseException:
        for name in came():
            del sys.modules[name]
        sys.modules.update(old)
        raise
    _ours.update({name: _stamp(name) for name in came()})


def _stamp(name: str) -> tuple[int, ...]:
    """What the file of a module is like now; empty if it has none."""
    try:
        found = os.stat(sys.modules[name].__file__ or "")
    except (OSError, AttributeError):
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino


def _greeting(spec: str, module_name: str, attribute: str) -> Greeting:
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
