"""Figures as people read them, and names that strangers chose."""

from __future__ import annotations

from datetime import UTC, datetime

from llm_gateway.report.figures import Figures, JournalData
from llm_gateway.sentences import dollars

UNKNOWN = "unknown"
NOTHING = "–"  # noqa: RUF001 - a dash for what does not exist
LONGEST_NAME = 48
MINUTE, HOUR, DAY = 60, 3600, 86_400
LONG_UNITS = ((DAY, "d", HOUR, "h"), (HOUR, "h", MINUTE, "min"), (MINUTE, "min", 1, "s"))
THOUSAND = 1000


def shown(name: str, longest: int = LONGEST_NAME) -> str:
    """Return a name without control characters, and shortened: a log can hold any name."""
    clean = "".join(letter if letter.isprintable() else "�" for letter in name)
    return clean if len(clean) <= longest else f"{clean[: longest - 1]}…"


def short(number: float) -> str:
    """Write a count in at most five characters: "950", "12.3k", "4.56M"."""
    for unit in ("", "k", "M", "G"):
        if number < THOUSAND - 0.5:
            return f"{number:.3g}{unit}"
        number /= THOUSAND
    return f"{number:.3g}T"


def duration(seconds: float | None) -> str:
    """Write a duration: "12 ms", "1.23 s", "4 min 5 s", "2 h 10 min", "3 d 4 h"; a dash for None."""
    if seconds is None:
        return NOTHING
    if seconds == 0:
        return "0 s"
    if seconds < 0.9995:  # noqa: PLR2004 - would read "1000 ms"
        return f"{seconds * 1000:.3g} ms"
    if seconds < MINUTE - 0.05:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    unit, name, part, its_name = next(each for each in LONG_UNITS if whole >= each[0])
    count, rest = whole // unit, whole % unit // part
    return f"{count:,} {name} {rest} {its_name}" if rest else f"{count:,} {name}"


def cost_of(figures: Figures) -> str:
    """Write what is known of a cost; "≥" where some answers have no price, a dash where nothing was answered."""
    if not figures.ok and not figures.cost:
        return NOTHING
    known = dollars(figures.cost_usd)
    return f"≥ {known}" if figures.unpriced and figures.priced else known


def period(data: JournalData) -> str:
    """Write from when to when the journal goes, in UTC."""
    first, last = (datetime.fromtimestamp(when, UTC) for when in (data.first, data.last))
    until = f"{last:%H:%M:%S}" if first.date() == last.date() else f"{last:%Y-%m-%d %H:%M:%S}"
    return f"{first:%Y-%m-%d %H:%M:%S} to {until} UTC ({duration(data.last - data.first)})"


def remarks(data: JournalData) -> list[str]:
    """Return what a reader must know about what is missing from the figures."""
    found = []
    if data.total.unpriced:
        found.append(f"{data.total.unpriced:,} answers have no known price; set [models.NAME] price.")
    if data.lost:
        found.append(f"{data.lost:,} lines were lost while the disk could not be written.")
    if data.unread:
        found.append(f"{data.unread:,} lines could not be read (torn by a kill, or not a journal's).")
    return found
