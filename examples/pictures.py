"""Make the pictures of the README from real runs on loopback.

    python examples/pictures.py            # writes examples/pictures/terminal.svg and report.png
    python examples/pictures.py --check    # writes both into a temporary folder, from a short run

Both show one load test: the terminal shows ``greeter serve``, ``greeter greet`` and ``greeter load``, and
the page is the report that this ``greeter load`` wrote.

Invariants:

- Every line of output in the terminal came from a process. The access log is shortened, marked by a line with
  an ellipsis. Warnings before the first ``Listening`` line are omitted: they are about the machine, for
  example that the command runs as root.
- The page is the report itself; a style sheet hides sections and changes nothing else.
- Neither picture names this machine, its user or a path on it.

Needs the extra ``all``, and Chromium for the page.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import html
import io
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "examples" / "pictures"
COLUMNS = 92  # of the terminal, for the whole table of latencies
ACCESS_LOG_LINES = 2  # lines of the access log that are shown
PAGE_WIDTH = 1100  # CSS pixels; at this width the tiles at the top of the page form one row
SCALE = 1.5  # PNG pixels per CSS pixel
TIMEOUT = 60.0  # seconds for each process
MAX_BYTES = 300_000  # both pictures together
ATTEMPTS = 5  # runs until one keeps its threshold
LOAD = ("--stage", "6s:1000", "--stage", "9s:1000", "--stage", "5s:200", "--threshold", "response:p99<20ms")
SHORT_LOAD = ("--stage", "500ms:100", "--threshold", "response:p99<20ms")
GREETED = (0, 98, 99)  # exit codes with greetings; the last two mean a busy machine

# Rich's own template loads a font from the network, which is not possible in an image of a README.
SVG = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
    <style>
    .{unique_id}-matrix {{
        font-family: ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace;
        font-size: {char_height}px;
        line-height: {line_height}px;
    }}
    .{unique_id}-title {{ font: bold 18px sans-serif; }}
    {styles}
    </style>
    <defs>
    <clipPath id="{unique_id}-clip-terminal">
      <rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
    </clipPath>
    {lines}
    </defs>
    {chrome}
    <g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
    {backgrounds}
    <g class="{unique_id}-matrix">
    {matrix}
    </g>
    </g>
</svg>
"""

SECTIONS = ("thresholds", "rates-title", "heat-title")  # of the report, by the id of their heading
OTHERS = "section" + "".join(f':not([aria-labelledby="{name}"])' for name in SECTIONS)
STYLE = f"<style>nav, details, {OTHERS} {{ display: none !important }}</style>"
# Chromium dumps the document after its scripts have run; these attributes have its size and visible text.
MEASURE = """<script>
addEventListener("load", () => setTimeout(() => {
  const { documentElement: root, body } = document;
  root.dataset.height = Math.ceil(body.getBoundingClientRect().bottom);
  root.dataset.charts = document.querySelectorAll(".chart svg").length;
  root.dataset.text = body.innerText;
}, 500));
</script>"""


def fail(message: str) -> NoReturn:
    sys.exit(f"pictures: {message}")


def environment() -> dict[str, str]:
    """Return the environment of the commands: this source tree, without options of greeter."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GREETER_")}
    return kept | {"PYTHONPATH": str(ROOT)}


def run(folder: Path, *command: str, codes: tuple[int, ...] = (0,)) -> tuple[int, str]:
    """Run ``command`` in ``folder``.

    Returns:
        Its exit code, which is one of ``codes``, and its standard output.
    """
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=TIMEOUT
        )
    except subprocess.TimeoutExpired:
        fail(f"{shlex.join(command)} did not end within {TIMEOUT:g} s")
    if done.returncode not in codes:
        fail(f"{shlex.join(command)} exited with {done.returncode}: {done.stdout[-2000:]}{done.stderr}")
    return done.returncode, done.stdout


def greeter(folder: Path, *args: str, codes: tuple[int, ...] = (0,)) -> tuple[int, str]:
    return run(folder, sys.executable, "-m", "greeter", *args, codes=codes)


@contextlib.contextmanager
def serving(folder: Path, *args: str) -> Iterator[list[str]]:
    """Run ``greeter serve ARGS`` and stop it with SIGINT at the end; yields its growing log."""
    server = subprocess.Popen(
        [sys.executable, "-m", "greeter", "serve", *args],
        cwd=folder,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stderr is not None
    before = list[str]()
    for first in server.stderr:
        if first.startswith("Listening on "):
            break
        before.append(first)
    else:
        server.wait(TIMEOUT)
        fail(f"greeter serve did not start: {''.join(before).strip()}")
    lines = [first]
    reader = threading.Thread(target=lines.extend, args=(server.stderr,))
    reader.start()
    try:
        yield lines
        server.send_signal(signal.SIGINT)
        if server.wait(TIMEOUT) != 0:
            fail(f"greeter serve exited with {server.returncode}")
    finally:
        server.kill()  # without effect on a process that has ended
        reader.join()
        server.stderr.close()


def shown(*args: str) -> Text:
    """Return a command as typed after a prompt."""
    lines = ["greeter"]
    for word in re.findall(r"--\S+(?: (?!--)\S+)?|\S+", shlex.join(args)):
        if len(lines[-1]) + len(word) > COLUMNS - 6:
            lines[-1] += " \\"
            lines.append("   ")
        lines[-1] += f" {word}"
    return Text.assemble(("$ ", "bold green"), ("\n".join(lines), "bold"))


def shortened(log: list[str]) -> list[Text]:
    """Return the log without most lines of the access log."""
    access = [number for number, line in enumerate(log) if line.startswith("Got a connection from")]
    left_out = set(access[ACCESS_LOG_LINES:])
    lines: list[Text] = []
    for number, line in enumerate(log):
        if number not in left_out:
            lines.append(Text(line.rstrip("\n")))
        elif number - 1 not in left_out:
            lines.append(Text("⋮", "dim"))
    return lines


def record(folder: Path, load: tuple[str, ...], *, default_port: bool) -> tuple[int, list[Text]]:
    """Serve, greet and load; the report is then in ``folder``.

    Args:
        folder: where the commands run.
        load: options of the load test.
        default_port: serve on the default port; otherwise on any free port, which the commands then name.

    Returns:
        The exit code of the load test, and the lines of the terminal.
    """
    args = () if default_port else ("--listen", "127.0.0.1:0")
    with serving(folder, *args) as log:
        address = log[0].removeprefix("Listening on ").split(" ")[0]
        target = (address,) if args else ()
        load = (*target, *load, "--html", "report.html")
        _, greeting = greeter(folder, "greet", *target)
        code, summary = greeter(folder, "load", *load, codes=GREETED)
    stop = next((number for number, line in enumerate(log) if line.startswith("SIGINT")), len(log) - 1)
    return code, [
        Text("# in one terminal, until Ctrl-C", "dim"),
        shown("serve", *args),
        *shortened(log[:stop]),
        Text("^C"),
        *shortened(log[stop:]),
        Text(),
        Text("# in another", "dim"),
        shown("greet", *target),
        *map(Text, greeting.splitlines()),
        Text(),
        shown("load", *load),
        *map(Text, summary.splitlines()),
    ]


def check_private(text: str, picture: str) -> None:
    """Fail if a text names this machine, its user or a path on it."""
    names = {socket.gethostname(), getpass.getuser(), str(ROOT), str(Path.home()), tempfile.gettempdir()}
    for name in names - {"localhost", "/"}:
        if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text):
            fail(f"{picture} shows {name!r}, a name of this machine")


def draw_terminal(lines: list[Text], path: Path) -> None:
    """Write ``lines`` as an SVG of a terminal."""
    check_private("\n".join(line.plain for line in lines), path.name)
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    for line in lines:
        console.print(line, highlight=False)
    path.write_text(console.export_svg(title="greeter", code_format=SVG, unique_id="greeter"))


def draw_page(report: Path, path: Path, chromium: str) -> None:
    """Write the first sections of a report page as a PNG."""
    page = report.read_text()
    # The page allows no script; the copy for the screenshot has one more.
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page, count=1)
    page = page.replace("</head>", STYLE + MEASURE + "</head>", 1)
    copy = report.with_name("page.html")
    copy.write_text(page)
    browser = [chromium, "--headless", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=10000"]
    browser.append(f"--force-device-scale-factor={SCALE}")
    if os.geteuid() == 0:
        browser.append("--no-sandbox")  # Chromium's sandbox does not work for root
    folder = report.parent
    _, document = run(folder, *browser, f"--window-size={PAGE_WIDTH},1000", "--dump-dom", copy.as_uri())
    found = re.search(r'<html[^>]* data-height="(\d+)" data-charts="(\d+)" data-text="([^"]*)"', document)
    if found is None or int(found[2]) == 0:
        fail("Chromium did not draw the report's charts")
    check_private(html.unescape(found[3]), path.name)
    size = f"--window-size={PAGE_WIDTH},{found[1]}"
    run(folder, *browser, size, f"--screenshot={path}", copy.as_uri())
    if not path.is_file():
        fail("Chromium did not write a screenshot")


def make(pictures: Path, *, check: bool = False) -> None:
    """Write both pictures into the folder ``pictures``.

    Args:
        pictures: an existing folder.
        check: use a short run on any port, whether or not it keeps its threshold.
    """
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        fail("Chromium is not installed; on Debian: apt-get install chromium")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for _ in range(1 if check else ATTEMPTS):
            code, lines = record(folder, SHORT_LOAD if check else LOAD, default_port=not check)
            if code == 0 or check:
                break
        else:
            fail(f"the load test exited with {code} in each of {ATTEMPTS} runs: this machine is too busy")
        draw_terminal(lines, pictures / "terminal.svg")
        draw_page(folder / "report.html", pictures / "report.png", chromium)
    size = sum(path.stat().st_size for path in pictures.iterdir())
    if size >= MAX_BYTES:
        fail(f"the pictures are {size:,} bytes together, and the limit is {MAX_BYTES:,}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the pictures of the README from real runs.")
    parser.add_argument("--check", action="store_true", help="draw into a temporary folder, from a short run")
    if parser.parse_args().check:
        with tempfile.TemporaryDirectory() as name:
            make(Path(name), check=True)
            print("both pictures can be made")
    else:
        PICTURES.mkdir(exist_ok=True)
        make(PICTURES)
        for path in sorted(PICTURES.iterdir()):
            print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
