"""Print the summary of a report and write its output files.

Invariants:

- A file that is known to be unwritable is reported before the run.
- If an output goes to standard output, nothing else does: the summary then goes to standard error.
- An output that fails after the run does not prevent the others. It turns exit code 0 into 1 and leaves any
  other code unchanged.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from greeter.errors import ConfigError
from greeter.loadtest.report import outfile
from greeter.loadtest.report.export import hdr_log, timeline_csv
from greeter.loadtest.report.html import drawable, packages, page
from greeter.loadtest.report.render import Style, summary

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from greeter.loadtest.report.report import LoadReport

# How each output is rendered, from a report and its baseline.
OUTPUTS: dict[str, Callable[[LoadReport, LoadReport | None], str]] = {
    "json": lambda report, _: report.to_json(),
    "csv": lambda report, _: timeline_csv(report),
    "hdr": lambda report, _: hdr_log(report),
    "html": page,
}


def check_outputs(paths: Mapping[str, str | Path], old: LoadReport | None = None, prefix: str = "--") -> None:
    """Check before a run that the outputs can be written.

    Args:
        paths: the files, by their names in OUTPUTS.
        old: the baseline.
        prefix: what precedes the name of an output in the option that an error names.

    Raises:
        ConfigError: a path is not writable or given twice, or the baseline cannot be drawn.
        MissingExtra: the packages for an HTML page are not installed.
    """
    targets: dict[str, str] = {}
    for name, path in paths.items():
        option = prefix + name
        try:
            outfile.check(path)
        except outfile.WriteFailed as error:
            raise ConfigError(f"{option}: {error}") from None
        to_stdout = outfile.is_stdout(path)
        other = targets.setdefault("-" if to_stdout else os.path.realpath(path), option)
        if other != option:
            what = "both go to standard output" if to_stdout else f"name the same file, {path}"
            raise ConfigError(f"{other} and {option} {what}")
    if "html" in paths:
        packages()
        if old is not None:
            drawable(old)  # decodes its histograms for the first time


def write_outputs(
    report: LoadReport,
    old: LoadReport | None,
    paths: Mapping[str, str | Path],
    print_summary: Callable[[str], None],
    report_error: Callable[[OSError], None],
    title: str | None = None,
) -> int:
    """Print the summary of a report and write its output files.

    Args:
        report: the report.
        old: its baseline.
        paths: the files, by their names in OUTPUTS.
        print_summary: prints a text to standard output; may raise OSError.
        report_error: called for each output that failed, after all were tried.
        title: the title of the HTML page; by default, it names the target.

    Returns:
        The exit code: that of the report; if that is 0 and an output failed, 1.

    Raises:
        ConfigError: the report was read from a file and has an invalid histogram.
    """
    failures: list[OSError] = []
    try:
        if any(map(outfile.is_stdout, paths.values())):
            print(summary(report, Style.of(sys.stderr)).removesuffix("\n"), file=sys.stderr)
        else:
            print_summary(summary(report, Style.of()).removesuffix("\n"))
    except OSError as error:  # a full disk behind stdout
        failures.append(error)
    try:
        for name, render in OUTPUTS.items():
            try:
                if name in paths:
                    text = page(report, old, title) if name == "html" else render(report, old)
                    outfile.write(paths[name], text)
            except outfile.WriteFailed as error:
                failures.append(error)
    finally:
        for failure in failures:
            report_error(failure)
    return report.exit_code or int(bool(failures))
