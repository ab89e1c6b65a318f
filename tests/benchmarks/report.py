"""What was measured, as tables for people and as JSON for programs.

Invariants:
- Both say the same. Nothing is computed here but the width of a column.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tests.benchmarks.figures import Figure, Row, Table

SCHEMA = 1


def header(facts: Mapping[str, str]) -> str:
    """Where and when this was measured, one fact a line."""
    width = max(map(len, facts))
    return "\n".join(f"{name:<{width}}  {fact}" for name, fact in facts.items())


def as_text(table: Table) -> str:
    """The table, with a line for its title and one for the heads of its columns."""
    extras = list(dict.fromkeys(name for row in table.rows for name in row.extras))
    heads = ["", table.unit, f"× {table.base}" if table.base else "", *extras, "claim", ""]
    lines = [heads] + [_cells(table, row, extras) for row in table.rows]
    keep = [index for index in range(len(heads)) if index == 0 or any(line[index] for line in lines[1:])]
    widths = {index: max(len(line[index]) for line in lines) for index in keep}
    shown = [f"{table.name}: {table.title}"]
    for line in lines:
        # Names and what stands behind the claim begin on the left; figures end on the right.
        cells = [
            f"{line[i]:<{widths[i]}}" if i in (0, len(heads) - 1) else f"{line[i]:>{widths[i]}}" for i in keep
        ]
        shown.append("  ".join(cells).rstrip())
    return "\n".join(shown)


def _cells(table: Table, row: Row, extras: Sequence[str]) -> list[str]:
    verdict = {True: "holds", False: "MISSED", None: ""}[row.holds]
    return [
        row.name,
        _spread(row.value, table.digits),
        _spread(row.ratio, 2) if row.ratio and row.name != table.base else "",
        *(f"{row.extras[name]:,.0f}" if name in row.extras else "" for name in extras),
        _claim(row),
        verdict,
    ]


def _claim(row: Row) -> str:
    if row.claim is None:
        return ""
    return _limit(row) + (" ×" if row.ratio is not None else "")


def _limit(row: Row) -> str:
    if row.claim is None:
        return ""
    sign = "≥" if row.claim.at_least else "≤"
    limit = row.claim.limit
    if row.ratio is not None:
        return f"{sign} {limit:.2f}"
    return f"{sign} {limit:,.0f}" if limit == int(limit) else f"{sign} {limit:g}"


def _spread(figure: Figure, digits: int) -> str:
    middle, low, high = (f"{value:,.{digits}f}" for value in (figure.median, figure.low, figure.high))
    return middle if low == high else f"{middle} [{low}-{high}]"


def claims(tables: Iterable[Table]) -> str:
    """Every claim, with its limit and what was found, one a line."""
    lines = [["claim", "row", "found", "limit", ""]]
    for table in tables:
        for row in table.rows:
            if row.claim is not None:
                against = f" × {table.base}" if row.ratio is not None else f" {table.unit}"
                holds = "holds" if row.holds else "MISSED"
                lines.append([table.name, row.name, f"{row.judged:,.2f}", _limit(row) + against, holds])
    widths = [max(len(line[index]) for line in lines) for index in range(4)]
    shown = []
    for name, of, found, limit, holds in lines:
        cells = (
            f"{name:<{widths[0]}}",
            f"{of:<{widths[1]}}",
            f"{found:>{widths[2]}}",
            f"{limit:<{widths[3]}}",
        )
        shown.append("  ".join((*cells, holds)).rstrip())
    return "\n".join(shown)


def verdict(tables: Iterable[Table]) -> str:
    """How many claims hold, and which do not."""
    judged = [(table, row) for table in tables for row in table.rows if row.holds is not None]
    missed = [(table, row) for table, row in judged if not row.holds]
    lines = [f"{len(judged) - len(missed)} of {len(judged)} claims hold."]
    for table, row in missed:
        lines.append(f"missed: {table.name}, {row.name}: {row.judged:,.2f}, claimed {_claim(row)}")
    return "\n".join(lines)


def as_json(facts: Mapping[str, str], tables: Iterable[Table], left_out: Mapping[str, str]) -> dict[str, Any]:
    """The same, with the sample of every round."""
    return {
        "schema": SCHEMA,
        "machine": dict(facts),
        "left_out": dict(left_out),
        "tables": [_table(table) for table in tables],
    }


def _table(table: Table) -> dict[str, Any]:
    return {
        "name": table.name,
        "title": table.title,
        "unit": table.unit,
        "base": table.base or None,
        "rows": [
            {
                "name": row.name,
                "value": _figure(row.value),
                "ratio": row.ratio and _figure(row.ratio),
                "extras": dict(row.extras),
                "claim": row.claim
                and {
                    "limit": row.claim.limit,
                    "at_least": row.claim.at_least,
                    "found": row.judged,
                    "holds": row.holds,
                },
            }
            for row in table.rows
        ],
    }


def _figure(figure: Figure) -> dict[str, Any]:
    return {
        "median": figure.median,
        "min": figure.low,
        "max": figure.high,
        "samples": list(figure.samples),
    }
