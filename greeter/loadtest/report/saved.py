"""Reports that were saved, read again: what stands behind ``greeter report``.

The law: a file comes from anywhere, so that nothing of it is used before all of it has been held against
the published schema; and whatever is wrong with it is one line that names the file and the place.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from greeter.errors import ConfigError, MissingExtra, reason
from greeter.loadtest.report.baseline import DEFAULT_TOLERANCE, check
from greeter.loadtest.report.merge import merge
from greeter.loadtest.report.report import LoadReport

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# More than any count of a run, and less than any figure but 0: what lies between can be reckoned with.
_MOST, _LEAST = 2.0**63, 1e-30


def gather(
    paths: Sequence[str | Path], *, merged: bool = False, tolerance: float = DEFAULT_TOLERANCE
) -> tuple[LoadReport, LoadReport | None]:
    """The report that the files tell of, and the older one that it is compared with.

    One file is a run; of two, the second is the older run, ``tolerance`` as for ``LoadReport.against``;
    with ``merged`` they are the parts of one run, however many. Raises ConfigError for a file that cannot
    be read or is no report, and MissingExtra without the packages of the extra ``report``.
    """
    reports = [read(path) for path in paths]
    names = [str(path) for path in paths]
    if merged:
        return merge(list(zip(names, reports, strict=True))), None
    if not 1 <= len(reports) <= 2:
        raise ConfigError(f"one report is shown, or compared with one baseline; {len(reports)} were given")
    if len(reports) == 1:
        return reports[0], None
    run, baseline = reports
    return run.against(baseline, tolerance, names[1]), baseline


def read(path: str | Path) -> LoadReport:
    """The report in the file at ``path``. Raises as ``gather`` does."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {str(path)!r}: {reason(error)}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is no JSON: it is not UTF-8") from None
    return parse(text, str(path))


def read_baseline(path: str | Path) -> LoadReport:
    """The report in the file at ``path``, if a run can be held against it. Raises as ``gather`` does."""
    report = read(path)
    check(report.to_dict(), str(path))
    return report


def parse(text: str, name: str = "report") -> LoadReport:
    """The report that ``text`` is, checked; ``name`` is what an error calls it. Raises as ``gather`` does."""
    jsonschema = _package()
    try:
        report = LoadReport.from_json(text, name)  # with its own words for what is no report at all
        values = json.loads(text)
    except RecursionError:
        raise ConfigError(f"{name} is no JSON of a report: it is nested too deeply") from None
    for place in _out_of_range(values, ()):
        raise ConfigError(f"{name} is no report of a load test: {_path(place)} is out of range")
    error = jsonschema.exceptions.best_match(_validator().iter_errors(values))
    if error is not None:
        complaint = " ".join(error.message.split())
        if len(complaint) > 120:
            complaint = complaint[:120] + "…"
        where = _path(error.absolute_path)
        raise ConfigError(f"{name} is no report of a load test: {where}{': ' * bool(where)}{complaint}")
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
    """The places of the numbers in a JSON value that one cannot reckon with: NaN, infinity, 1e300, 1e-300."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _out_of_range(inner, (*place, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _out_of_range(inner, (*place, index))
    elif isinstance(value, int | float) and value and not _LEAST < abs(value) < _MOST:  # NaN is neither
        yield place


def _path(place: Any) -> str:
    """A place in a JSON value, as in ``timeline[3].open``."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place).removeprefix(".")
