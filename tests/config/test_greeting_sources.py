"""Greetings from files and from MODULE:NAME, and every error of both."""

from __future__ import annotations

import importlib
import sys
from socket import AddressFamily
from typing import TYPE_CHECKING

import pytest

from greeter import ConfigError, Peer
from greeter.config.greeting_sources import greeting_from_app, greeting_from_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PEER = Peer("192.0.2.7", 3747, AddressFamily.AF_INET)


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], Path]]:
    """Write a module into the current directory; it is unloaded afterwards."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.chdir(tmp_path)

    def module(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    yield module
    for name in set(sys.modules) - before:
        del sys.modules[name]
    sys.path_importer_cache.pop(str(tmp_path), None)


def error_of(spec: str) -> str:
    with pytest.raises(ConfigError) as caught:
        greeting_from_app(spec)
    return str(caught.value)


# -- files -----------------------------------------------------------------------------------------------


def test_a_file_is_sent_byte_for_byte(tmp_path: Path) -> None:
    data = b"$host is no name here\r\n\xff\0"
    (tmp_path / "greeting").write_bytes(data)
    for path in (tmp_path / "greeting", str(tmp_path / "greeting")):
        greeting = greeting_from_file(path)
        assert (greeting.fixed, greeting.kind) == (data, "fixed")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "no\n", "no such file or directory"), (tmp_path, "is a directory")):
        with pytest.raises(ConfigError) as caught:
            greeting_from_file(path)
        assert str(caught.value) == f"cannot read the greeting file {str(path)!r}: {why}"


# -- MODULE:NAME -----------------------------------------------------------------------------------------


def test_an_app_is_anything_that_a_greeting_can_be(write: Callable[[str, str], Path]) -> None:
    write(
        "apps_one.py",
        "from greeter import Greeting\n"
        "def hello(peer): return f'hello {peer.port}'\n"
        "async def later(peer): return 'later'\n"
        "text, data, ready = '$port', b'$port', Greeting('ready')\n"
        "class names:\n    inner = staticmethod(hello)\n",
    )
    for name, kind in (
        ("hello", "sync"),
        ("later", "async"),
        ("text", "template"),
        ("data", "fixed"),
        ("ready", "fixed"),
        ("names.inner", "sync"),
    ):
        assert greeting_from_app(f"apps_one:{name}").kind == kind
    assert greeting_from_app("apps_one:hello").render(PEER) == b"hello 3747"
    assert sys.path[0] == ""  # the current directory comes first
    assert sys.path.count("") == 1


def test_a_module_in_a_package(write: Callable[[str, str], Path]) -> None:
    write("apps_package/__init__.py", "")
    write("apps_package/inner.py", "text = 'from a package'")
    assert greeting_from_app("apps_package.inner:text").fixed == b"from a package"
    assert (
        error_of("apps_package.other:x") == "'apps_package.other:x': there is no module 'apps_package.other'"
    )
    assert error_of("apps_nowhere.inner:x") == "'apps_nowhere.inner:x': there is no module 'apps_nowhere'"


@pytest.mark.parametrize("spec", ["", ":", "module", "module:", ":name", ".relative:name", "..:x"])
def test_a_spec_of_another_form_is_an_error(spec: str) -> None:
    assert error_of(spec) == f"{spec!r} is not of the form MODULE:NAME"


def test_a_missing_module_is_named(write: Callable[[str, str], Path]) -> None:
    assert error_of("apps_missing:x") == "'apps_missing:x': there is no module 'apps_missing'"
    assert error_of("apps missing\n:x").isprintable()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("import apps_not_there", "ModuleNotFoundError: No module named 'apps_not_there'"),
        ("\n\nx = 1 / 0", "ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("raise ImportError('no luck')", "ImportError: no luck"),
    ],
)
def test_a_module_that_fails_is_not_reported_as_missing(
    write: Callable[[str, str], Path], text: str, why: str
) -> None:
    path = write("apps_broken.py", text)
    line = error_of("apps_broken:x")
    assert line.startswith(f"'apps_broken:x': module 'apps_broken' failed while importing: {why} (")
    assert line.endswith(f"{path.name}, line {text.count(chr(10)) + 1})")


def test_a_syntax_error_has_its_line(write: Callable[[str, str], Path]) -> None:
    write("apps_syntax.py", "def (")
    line = error_of("apps_syntax:x")
    assert line.startswith("'apps_syntax:x': module 'apps_syntax' failed while importing: SyntaxError: ")
    assert line.endswith("(apps_syntax.py, line 1)")


def test_the_location_of_a_failure_is_where_it_was_raised(write: Callable[[str, str], Path]) -> None:
    write("apps_outer.py", "import apps_inner\n")
    inner = write("apps_inner.py", "\n\nint('x')\n")
    assert error_of("apps_outer:x").endswith(f"{inner.name}, line 3)")


def test_a_changed_package_is_imported_anew(write: Callable[[str, str], Path]) -> None:
    write("apps_again/__init__.py", "from apps_again.texts import text")
    write("apps_again/texts.py", "text = 'one'")
    assert greeting_from_app("apps_again:text").fixed == b"one"
    write("apps_again/texts.py", "text, more = 'two!', 'three'")
    assert greeting_from_app("apps_again:text").fixed == b"two!"
    assert greeting_from_app("apps_again.texts:more").fixed == b"three"


def test_an_unchanged_module_is_not_imported_anew(write: Callable[[str, str], Path]) -> None:
    """Some modules can be imported only once, such as one that registers metrics."""
    write("apps_once/__init__.py", "text = 'one'")
    greeting_from_app("apps_once:text")
    once = sys.modules["apps_once"]
    assert greeting_from_app("apps_once:text").fixed == b"one"
    assert sys.modules["apps_once"] is once


def test_a_module_imported_by_the_callable_is_imported_anew_too(write: Callable[[str, str], Path]) -> None:
    write(
        "apps_late/__init__.py",
        "def text(peer):\n    import apps_late.texts\n    return apps_late.texts.text",
    )
    write("apps_late/texts.py", "text = 'one'")
    assert greeting_from_app("apps_late:text").render(PEER) == b"one"
    write("apps_late/texts.py", "text = 'two!'")
    assert greeting_from_app("apps_late:text").render(PEER) == b"two!"


@pytest.mark.parametrize("text", ["1 / 0", "def (", "import apps_kept.texts\ntext = 5", "other = 'x'"])
def test_after_an_error_the_modules_of_the_earlier_call_stay(
    write: Callable[[str, str], Path], text: str
) -> None:
    write("apps_kept/__init__.py", "text = 'one'")
    write("apps_kept/texts.py", "")
    greeting_from_app("apps_kept:text")
    kept = sys.modules["apps_kept"]
    write("apps_kept/__init__.py", text)
    error_of("apps_kept:text")
    assert sys.modules["apps_kept"] is kept
    assert "apps_kept.texts" not in sys.modules
    write("apps_kept/__init__.py", "text = 'another one'")
    assert greeting_from_app("apps_kept:text").fixed == b"another one"


def test_a_module_imported_by_other_code_is_not_imported_anew(write: Callable[[str, str], Path]) -> None:
    write("apps_theirs.py", "text = 'one'")
    sys.path.insert(0, "")
    loaded = importlib.import_module("apps_theirs")
    write("apps_theirs.py", "text = 'two!'")
    for _ in range(2):
        assert greeting_from_app("apps_theirs:text").fixed == b"one"
    assert sys.modules["apps_theirs"] is loaded


def test_a_missing_attribute_is_named(write: Callable[[str, str], Path]) -> None:
    write("apps_empty.py", "class there: pass")
    for name in ("nothing", "there.nothing", "there.", "a..b"):
        assert error_of(f"apps_empty:{name}") == (f"'apps_empty:{name}': module 'apps_empty' has no {name!r}")


def test_an_attribute_of_a_wrong_type_is_an_error(write: Callable[[str, str], Path]) -> None:
    write("apps_wrong.py", "number = 5\ntext = 'cost: $5'")
    assert error_of("apps_wrong:number") == (
        "'apps_wrong:number': a greeting must be text, bytes or a callable, not int"
    )
    assert error_of("apps_wrong:text").startswith("'apps_wrong:text': greeting has a lone $ in '$5'")
