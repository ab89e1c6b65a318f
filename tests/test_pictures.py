"""The pictures of the documentation: they can be made again, are small, and name no machine."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from tests.conftest import ROOT

PICTURES = ROOT / "examples" / "pictures"
MAX_BYTES = 300_000  # of all pictures together: a clone has them, and the README loads them
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def terminal_text() -> str:
    """The lines of the terminal, without those that only draw it."""
    root = ElementTree.parse(PICTURES / "terminal.svg").getroot()
    lines: dict[float, str] = {}
    for element in root.iter("{http://www.w3.org/2000/svg}text"):
        height = float(element.get("y", "0"))
        lines[height] = lines.get(height, "") + (element.text or "").replace("\xa0", " ")
    return "\n".join(line.rstrip() for _, line in sorted(lines.items()))


def test_the_pictures_are_small() -> None:
    sizes = {path.name: path.stat().st_size for path in PICTURES.iterdir()}
    assert sizes.keys() == {"terminal.svg", "report.png"}
    assert sum(sizes.values()) < MAX_BYTES, sizes


def test_the_terminal_shows_the_three_commands_and_what_they_wrote() -> None:
    text = terminal_text()
    for words in (
        "$ greeter serve\n",
        "\nListening on 127.0.0.1:9999 (",
        "\nGot a connection from ('127.0.0.1', ",
        "$ greeter greet\nThank you for connecting\n",
        "$ greeter load ",
        "  passed  response:p99<20ms",
    ):
        assert words in text
    assert re.search(r"^Stopped: (\d+) greeted of \1 accepted, 0 failed", text, re.M)


def test_the_terminal_loads_nothing_and_names_no_path() -> None:
    picture = (PICTURES / "terminal.svg").read_text()
    links = set(re.findall(r"https?://[^\s\"')]+", picture))
    assert links == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"(?<![\w.<])/(home|root|tmp|usr|var)\b", terminal_text())


def test_the_report_is_a_png_without_texts_of_its_own() -> None:
    picture = (PICTURES / "report.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    at, kinds = 8, set()
    while at < len(picture):
        length, kind = struct.unpack_from(">I4s", picture, at)
        kinds.add(kind)
        at += 12 + length
    # A chunk of text could name the program, the time zone or the file that it was made from.
    assert not kinds & {b"tEXt", b"iTXt", b"zTXt", b"eXIf"}


@pytest.mark.one_interpreter
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.thorough
def test_the_pictures_can_be_made_again() -> None:
    command = [sys.executable, "examples/pictures.py", "--check"]
    before = {path: path.read_bytes() for path in PICTURES.iterdir()}
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert (found.returncode, found.stdout, found.stderr) == (0, "both pictures can be made\n", "")
    assert {path: path.read_bytes() for path in PICTURES.iterdir()} == before
