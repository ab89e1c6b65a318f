"""The JSON schema of a report, for those who read reports with a program."""

from __future__ import annotations

from typing import Any

from greeter.conformance.check_report import SCHEMA
from greeter.conformance.findings import Ending, Severity, Verdict


def schema() -> dict[str, Any]:
    """Returns the schema (JSON Schema, draft 2020-12) of what ``CheckReport.to_json()`` returns."""
    text = {"type": "string"}
    check = {
        "id": {"type": "string", "pattern": "^[a-z]+(-[a-z0-9]+)*$"},
        "title": text,
        "severity": {"enum": [severity.value for severity in Severity]},
        "verdict": {"enum": [verdict.value for verdict in Verdict]},
        "expected_fail": {"type": "boolean"},
        "figure": text,
        "classes": {
            "type": "object",
            "propertyNames": {"enum": [*(ending.value for ending in Ending), "kept"]},
            "additionalProperties": {"type": "integer", "minimum": 0},
        },
        "seconds": {"type": "number", "minimum": 0},
        "why": text,
        "sources": {"type": "array", "items": text, "minItems": 1},
        "cause": text,
        "cure": text,
        "story": text,
        "data": {"type": "object"},
    }
    report = {
        "schema": {"const": SCHEMA},
        "target": text,
        "profile": text,
        "started_at": text,
        "duration_s": {"type": "number", "minimum": 0},
        "greeting": text,
        "strict": {"type": "boolean"},
        "reason": text,
        "checks": {"type": "array", "items": _object(check)},
        "headline": text,
        "exit_code": {"enum": [0, 1, 98, 99]},
        "environment": {"type": "object", "required": ["greeter", "python", "kernel"]},
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **_object(report)}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
