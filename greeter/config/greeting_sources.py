"""Load a greeting from a file or from ``MODULE:NAME``.

Invariants:

- A missing module and a module that fails while it is imported are different errors: the first is a wrong
  option, the second is a bug in the module.
- Each call reads the file anew, and imports a changed module anew, so that a reload sees the changes. What
  can be read only once keeps its contents (input_files.py).
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from typing import TYPE_CHECKING

from greeter.core.greeting import Greeting
from greeter.errors import ConfigError
from greeter.system.input_files import read_input

if TYPE_CHECKING:
    from collections.abc import Iterator

# The modules that apps have imported, and the state of their files at that time. Modules that were loaded
# before are not imported anew.
_app_modules: dict[str, tuple[int, ...]] = {}


def greeting_from_file(path: str | os.PathLike[str]) -> Greeting:
    """Read a greeting from a file, byte for byte.

    Args:
        path: The file.

    Returns:
        A greeting of these bytes.

    Raises:
        ConfigError: The file cannot be read.
    """
    try:
        return Greeting(read_input(path))
    except OSError as error:
        why = error.strerror or str(error)
        raise ConfigError(
            f"cannot read the greeting file {str(path)!r}: {why[:1].lower() + why[1:]}"
        ) from error


def greeting_from_app(spec: str) -> Greeting:
    """Import the greeting that ``MODULE:NAME`` names.

    The current directory is searched first. If the file of a module that an earlier call imported has
    changed, that module is imported anew, with the rest of its package. After an error, the modules of the
    earlier call stay loaded.

    Args:
        spec: ``MODULE:NAME``, where NAME may have dots. It names a callable, text, bytes or a Greeting.

    Returns:
        The greeting.

    Raises:
        ConfigError: A part of ``spec`` is missing, or the module failed while it was imported; the message
            has the file and the line.
    """
    module_name, colon, attribute = spec.partition(":")
    if not (module_name and colon and attribute) or module_name.startswith("."):
        raise ConfigError(f"{spec!r} is not of the form MODULE:NAME")
    if "" not in sys.path:
        sys.path.insert(0, "")
    with _reimporting(module_name.partition(".")[0]):
        return _greeting(spec, module_name, attribute)


@contextlib.contextmanager
def _reimporting(package: str) -> Iterator[None]:
    """Unload the modules of earlier apps inside the block if the file of one has changed.

    Afterwards, the modules of ``package`` that the block imported are app modules too. If the block raises,
    the state before it is restored.
    """
    importlib.invalidate_caches()  # else a file that has just been written might not be found
    loaded = {
        name for name in sys.modules if any(f"{name}.".startswith(f"{known}.") for known in _app_modules)
    }
    # Some modules can be imported only once, so unchanged ones stay.
    changed = any(_app_modules.get(name) != _file_stamp(name) for name in loaded)
    old = {name: sys.modules.pop(name) for name in loaded if changed}
    others = set(sys.modules)

    def new_modules() -> set[str]:
        return {name for name in set(sys.modules) - others if f"{name}.".startswith(f"{package}.")}

    try:
        yield
    except BaseException:
        for name in new_modules():
            del sys.modules[name]
        sys.modules.update(old)
        raise
    _app_modules.update({name: _file_stamp(name) for name in new_modules()})


def _file_stamp(name: str) -> tuple[int, ...]:
    """Return what identifies the state of a module's file; empty if it has no file."""
    try:
        found = os.stat(sys.modules[name].__file__ or "")
    except (OSError, AttributeError):
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino


def _greeting(spec: str, module_name: str, attribute: str) -> Greeting:
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # The module itself or a parent package is missing. Any other missing module is a failure inside it.
        if error.name is not None and (module_name + ".").startswith(error.name + "."):
            raise ConfigError(f"{spec!r}: there is no module {error.name!r}") from error
        raise _import_error(spec, module_name, error) from error
    except KeyboardInterrupt:
        raise  # Ctrl-C is not a failure of the module
    except BaseException as error:  # including SystemExit
        raise _import_error(spec, module_name, error) from error
    value: object = module
    for name in attribute.split("."):
        try:
            value = getattr(value, name)
        except AttributeError as error:
            raise ConfigError(f"{spec!r}: module {module_name!r} has no {attribute!r}") from error
    try:
        return Greeting(value)  # type: ignore[arg-type]  # it checks the type itself
    except ConfigError as error:
        raise ConfigError(f"{spec!r}: {error}") from error


def _import_error(spec: str, module: str, error: BaseException) -> ConfigError:
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
