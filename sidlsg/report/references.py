"""Published rows that a run's scores may stand beside: of its protocol and teacher, measured by the protocol's own code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sidlsg.evaluation.report import published
from sidlsg.report.reading import Run, number
from sidlsg.teachers.registry import registry


@dataclass(frozen=True)
class References:
    """Rows of ``published.yaml`` as (label, scores), and where rows are left out, why."""

    teacher: list[tuple[str, dict[str, Any]]]  # label: "CFG 3"
    teacher_what: str  # how the teacher draws in these rows
    students: list[tuple[str, dict[str, Any]]]
    missing: str = ""

    def span(self, key: str) -> tuple[float, float] | None:
        """Smallest and largest value of a score in the teacher's rows."""
        values = [value for _, row in self.teacher if (value := number(row.get(key))) is not None]
        return (min(values), max(values)) if values else None


# By the alias of a teacher: protocol, how its rows (if any) and those of its students begin, and how the teacher draws.
ROWS: dict[str, tuple[str, str | None, str, str]] = {
    "emoji": ("embedded", "teacher 25, ", "shipped student", "25 steps"),
    "sd15": ("gigagan", None, "SD1.5, SiD-LSG", ""),
    "sd21-base": ("gigagan", None, "SD2.1-base, SiD-LSG", ""),
}


def references(run: Run) -> References:
    """The rows that a run may be compared with; none, and the reason, when there are none."""

    def none(why: str) -> References:
        return References([], "", [], why)

    if not run.judged:
        return none("")
    if run.protocol is None:
        return none(
            f"The protocol {run.judged[-1].get('protocol')} is not one of this version: nothing to compare with."
        )
    protocol, teacher, student, what = ROWS.get(_alias(run), ("", None, "", ""))
    if run.protocol.name != protocol:
        return none(f"No published scores of this teacher are of the protocol {run.protocol.name}: none are drawn.")
    if warnings := run.judged[-1].get("warnings"):
        return none(" ".join([*map(str, warnings), "So no published scores are drawn."]))
    rows = published()[protocol][0]["rows"]
    return References(
        [(_short(row["method"]), row) for row in rows if teacher and row["method"].startswith(teacher)],
        what,
        [(row["method"], row) for row in rows if row["method"].startswith(student)],
    )


def _short(method: str) -> str:
    """ "teacher 25, CFG 3" -> "CFG 3"."""
    return method.split(", ")[-1]


def _alias(run: Run) -> str:
    """The teacher's short name, also when the run names it by a hub id."""
    teacher = str(run.settings.get("teacher"))
    return next((name for name, entry in registry().items() if teacher in entry.repositories), teacher)
