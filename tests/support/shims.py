"""Libraries for LD_PRELOAD, compiled from the C files of this folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path


class NoCompilerError(Exception):
    """There is no C compiler, or the system has no LD_PRELOAD."""


def compile_shim(name: str, directory: Path) -> Path:
    """Compile one of the C files of this folder.

    Args:
        name: The name of the file.
        directory: Where the library is written.

    Returns:
        The library.

    Raises:
        NoCompilerError: It cannot be compiled here.
    """
    compiler = shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        raise NoCompilerError(f"{name} needs Linux and a C compiler (cc)")
    library = directory / Path(name).with_suffix(".so")
    options = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    command = [compiler, *options, "-o", str(library), str(Path(__file__).parent / name), "-ldl"]
    subprocess.run(command, check=True)
    return library
