"""What the peers said: the distinct greetings of a run, in a bounded table.

A service that refuses in words (``421 too many connections``) sends a greeting like any other. Only its text
tells the two apart.

Invariants:

- Greetings are grouped by their first line. Runs of digits and of hexadecimal digits read ``#``, except a
  leading three-digit code, so that times, salts and counters do not fill the table. A binary greeting counts
  up to its first unprintable byte.
- The table is bounded: beyond ``_MAX_TEXTS`` texts, the least frequent are only counted, as ``others``.
- To count is cheap: greetings are counted by their bytes in ``heads``, and grouped in batches by ``bound``.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from greeter.loadtest.metrics.timeline import add_counts

if TYPE_CHECKING:
    from collections.abc import Mapping

# How many bytes of a greeting are looked at, and how many characters of its text are kept.
HEAD_BYTES = 256
_MAX_CHARACTERS = 120
# How many texts a report has, how many a worker keeps, and how many byte strings it counts before it groups.
SHOWN = 8
_MAX_TEXTS = 256
_MAX_HEADS = 1024

# SMTP, FTP and others begin with a code (RFC 5321 4.2), which is not a counter.
_CODE = re.compile(r"[0-9]{3}(?=[ -]|$)")
_VARIABLE = re.compile(
    r"\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b"  # a UUID
    r"|\b0[xX][0-9a-fA-F]+\b"
    r"|\b(?=[a-fA-F]*[0-9])[0-9a-fA-F]{4,}\b"
    r"|\b[0-9a-fA-F]{8,}\b"
    r"|[0-9]+",
    re.ASCII,
)


class GreetingTable:
    """Counts of greetings by their text.

    Args:
        counts: the counts to begin with, by text.
        others: the greetings that are counted without their text.
    """

    __slots__ = ("_counts", "_others", "heads")

    def __init__(self, counts: Mapping[str, int] | None = None, others: int = 0) -> None:
        self._counts = dict(counts or {})
        self._others = others
        self.heads: defaultdict[bytes, int] = defaultdict(int)  # by the first HEAD_BYTES bytes

    def bound(self) -> None:
        """Group the greetings if ``heads`` has many. Must be called regularly."""
        if len(self.heads) > _MAX_HEADS:
            self._group()

    def merge(self, other: GreetingTable) -> None:
        """Add the counts of another worker of the same run."""
        self._group()
        other._group()
        add_counts(self._counts, other._counts)
        self._others += other._others
        self._bound(_MAX_TEXTS)

    def to_json(self, shown: int = _MAX_TEXTS) -> dict[str, Any]:
        """Return the table as JSON: ``texts``, the most frequent first, and ``others``.

        Args:
            shown: the maximum of texts; what is beyond is counted in ``others``.
        """
        self._group()
        table = GreetingTable(self._counts, self._others)
        table._bound(shown)
        texts = [{"text": text, "count": count} for text, count in _by_count(table._counts)]
        return {"texts": texts, "others": table._others}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> GreetingTable:
        """Return the table that ``to_json`` made ``values`` from."""
        return cls({row["text"]: row["count"] for row in values["texts"]}, values["others"])

    def _group(self) -> None:
        """Move the counts by bytes to those by text."""
        for head, count in self.heads.items():
            text = group_text(head)
            self._counts[text] = self._counts.get(text, 0) + count
        self.heads.clear()
        self._bound(_MAX_TEXTS)

    def _bound(self, texts: int) -> None:
        """Keep the most frequent ``texts``, and only count the others."""
        if len(self._counts) > texts:
            kept = _by_count(self._counts)
            self._others += sum(count for _, count in kept[texts:])
            self._counts = dict(kept[:texts])


def _by_count(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def group_text(head: bytes) -> str:
    """Return the text under which a greeting is counted.

    Args:
        head: the beginning of the greeting.

    Returns:
        Printable text. If the first byte is not printable, it is that byte, escaped, as in ``\\x16``.
    """
    line = head.lstrip(b"\r\n").partition(b"\n")[0].rstrip(b"\r")
    text = line.decode(errors="surrogateescape").replace("\t", " ")
    end = next((index for index, char in enumerate(text) if not char.isprintable()), len(text))
    if not end:
        return f"\\x{line[0]:02x}" if line else ""
    code = _CODE.match(text)
    kept = code.end() if code else 0
    return (text[:kept] + _VARIABLE.sub("#", text[kept:end]))[:_MAX_CHARACTERS]
