"""Where a report goes when it is made: said, and written to the files that were asked for.

Invariants:

- What can be known of a file that cannot be written is reported before the run.
- An output that fails after the run does not keep the others from being written. It makes an exit code of 0
  a 1 and leaves any other code as it is.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from greeter.errors import ConfigError
from greeter.loadtest.report import outfile
from greeter.loadtest.report.html import packages, page
from greeter.loadtest.report.render import hdr_log, summary, timeline_csv

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from greeter.loadtest.report.report import LoadReport

# What there is to write, from a report and the older one that it is compared with.
OUTPUTS: dict[str, Callable[[LoadReport, LoadReport | None], str]] = {
    "json": lambda report, _: report.to_json(),
    "csv": lambda report, _: timeline_csv(report),
    "hdr": lambda report, _: hdr_log(report),
    "html": page,
}


def check(paths: Mapping[str, str | Path], old: LoadReport | None = None, prefix: str = "--") -> None:
    """See, before a run, that ``paths``, by their names in OUTPUTS, can be written as far as one can tell.

    ``old`` is the older run, ``prefix`` what an option has before its name in an error. Raises ConfigError,
    and MissingExtra without the packages that a page needs.
    """
    places: dict[str, str] = {}
    for name, path in paths.items():
        option = prefix + name
        if str(path) == "-":
            raise ConfigError(f"{option} takes a path; standard output is /dev/stdout, not -")
        try:
            outfile.check(path)
        except outfile.WriteFailed as error:
            raise ConfigError(f"{option}: {error}") from None
        other = places.setdefault(os.path.realpath(path), option)
        if other != option:
            raise ConfigError(f"{other} and {option} name the same file, {path}")
    if "html" in paths:
        packages()
        if old is not None:
            page(old)  # nobody has read its histograms yet


def deliver(
    report: LoadReport,
    old: LoadReport | None,
    paths: Mapping[str, str | Path],
    say: Callable[[str], None],
    complain: Callable[[OSError], None],
) -> int:
    """Say the summary of ``report`` and write it to ``paths``; what fails is complained about, one by one.

    Returns the exit code: the report's, or 1 when all is well but for what could not be said or written.
    Raises ConfigError for a report that is read from a file and has a histogram that is none.
    """
    failures: list[OSError] = []
    try:
        say(summary(report).removesuffix("\n"))
    except OSError as error:  # a full disk behind stdout
        failures.append(error)
    try:
        for name, render in OUTPUTS.items():
            try:
                if name in paths:
                    outfile.write(paths[name], render(report, old))
            except outfile.WriteFailed as error:
                failures.append(error)
    finally:
        for failure in failures:
            complain(failure)
    return report.exit_code or int(bool(failures))
