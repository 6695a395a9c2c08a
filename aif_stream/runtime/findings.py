"""What `aif doctor` finds: a level, what is so, and the mend."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from aif_stream.errors import AifError


class Level(StrEnum):
    """``ERROR``: answers or data are wrong or missing, or soon will be. ``WARNING``: look at it. ``OK``: fine."""

    ERROR = "error"
    WARNING = "warning"
    OK = "ok"


_ORDER: Final = list(Level)


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor. ``check`` groups lines: broker, topics, redis, …"""

    check: str
    level: Level
    what: str
    mend: str = ""


def sorted_findings(findings: list[Finding]) -> list[Finding]:
    """Errors first, then warnings; within a level in the order of the checks."""
    return sorted(findings, key=lambda finding: _ORDER.index(finding.level))


def ok(check: str, what: str) -> Finding:
    return Finding(check, Level.OK, what)


def warning(check: str, what: str, mend: str) -> Finding:
    return Finding(check, Level.WARNING, what, mend)


def error(check: str, what: str, mend: str) -> Finding:
    return Finding(check, Level.ERROR, what, mend)


def failed(check: str, problem: AifError) -> Finding:
    """A check that could not be made. What a broker denied is said as such."""
    cause = type(problem.__cause__).__name__ if problem.__cause__ is not None else ""
    if "AuthorizationFailed" in f"{cause} {problem.what}":
        return error(check, f"denied: {problem.what}", "give this user the right (ACL); docs/operations.md lists them")
    if "Authentication" in cause:
        return error(check, f"not let in: {problem.what}", "correct AIF_KAFKA_USERNAME, _PASSWORD, _SASL_MECHANISM")
    return error(check, problem.what, problem.mend or "see the logs of the part that it names")
