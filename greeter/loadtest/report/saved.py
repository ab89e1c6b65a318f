"""Read saved reports; the implementation of ``greeter report``.

Invariants:

- Files are untrusted: a file is validated against ``report-schema.json`` before any of it is used.
- An invalid file results in one line that names the file and the place in it.
"""

from __future__ import annotations

import json
import sys
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from greeter.errors import ConfigError, MissingExtra, os_error_text
from greeter.loadtest.report.baseline import DEFAULT_TOLERANCE, check_baseline
from greeter.loadtest.report.merge import merge
from greeter.loadtest.report.report import LoadReport
from greeter.system.input_files import read_input

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

# Bounds of the absolute value of a number that is not 0: beyond any figure of a run, safe for arithmetic.
_MAX_NUMBER, _MIN_NUMBER = 2.0**63, 1e-30


def read_reports(
    paths: Sequence[str | Path], *, merged: bool = False, tolerance: float = DEFAULT_TOLERANCE
) -> tuple[LoadReport, LoadReport | None]:
    """Read a report and, optionally, its baseline.

    Args:
        paths: one file, a run; or two files, a run and its baseline. With ``merged``, two or more parts of
            one run. ``-`` is standard input.
        merged: add up the reports of all files.
        tolerance: the tolerance of the comparison in percent, as for ``LoadReport.against``.

    Returns:
        The report, compared with the baseline if there is one, and the baseline or None.

    Raises:
        ConfigError: a file cannot be read, or is not a report.
        MissingExtra: the packages of the extra ``report`` are not installed.
    """
    names = [str(path) for path in paths]
    if names.count("-") > 1:
        raise ConfigError("standard input (-) can be read only once")
    reports = [read_report(path) for path in paths]
    if merged:
        return merge(list(zip(names, reports, strict=True))), None
    if not 1 <= len(reports) <= 2:
        raise ConfigError(f"expected a report and at most one baseline, got {len(reports)} files")
    if len(reports) == 1:
        return reports[0], None
    run, baseline = reports
    return run.against(baseline, tolerance, names[1]), baseline


def read_report(path: str | Path) -> LoadReport:
    """Return the report in the file at ``path``. Raises as ``read_reports`` does."""
    try:
        data = sys.stdin.buffer.read() if str(path) == "-" else read_input(path)
        text = data.decode()
    except OSError as error:
        raise ConfigError(f"cannot read {str(path)!r}: {os_error_text(error)}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not JSON: it is not UTF-8") from None
    return parse_report(text, str(path))


def read_baseline(path: str | Path) -> LoadReport:
    """Return the report in the file at ``path``, checked to be usable as a baseline.

    Raises as ``read_reports`` does.
    """
    report = read_report(path)
    check_baseline(report.to_dict(), str(path))
    return report


def parse_report(text: str, name: str = "report") -> LoadReport:
    """Parse and validate a report.

    Args:
        text: the JSON text.
        name: what an error calls the report.

    Raises as ``read_reports`` does.
    """
    jsonschema = _package()
    try:
        report = LoadReport.from_json(text, name)  # a clearer error for a file of another kind
        values = json.loads(text)
    except RecursionError:
        raise ConfigError(f"{name} is not a load test report: it is nested too deeply") from None
    for place in _out_of_range(values, ()):
        raise ConfigError(f"{name} is not a load test report: {_path(place)} is out of range")
    error = jsonschema.exceptions.best_match(_validator().iter_errors(values))
    if error is not None:
        message = " ".join(error.message.split())
        if len(message) > 120:
            message = message[:120] + "…"
        where = _path(error.absolute_path)
        raise ConfigError(f"{name} is not a load test report: {where}{': ' * bool(where)}{message}")
    return report


def _package() -> Any:
    try:
        import jsonschema  # type: ignore[import-untyped]  # its types are a package of their own
    except ImportError:
        raise MissingExtra("reading a report", "report") from None
    return jsonschema


@cache
def _validator() -> Any:
    schema = json.loads(files("greeter.loadtest").joinpath("report-schema.json").read_text(encoding="utf-8"))
    return _package().Draft202012Validator(schema)


def _out_of_range(value: Any, place: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
    """Yield the paths of the numbers that are out of bounds: NaN, infinity, 1e300, 1e-300."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _out_of_range(inner, (*place, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _out_of_range(inner, (*place, index))
    elif isinstance(value, int | float) and value and not _MIN_NUMBER < abs(value) < _MAX_NUMBER:
        # NaN compares false.
        yield place


def _path(place: Any) -> str:
    """Return a path in a JSON value as text, such as ``timeline[3].open``."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place).removeprefix(".")
