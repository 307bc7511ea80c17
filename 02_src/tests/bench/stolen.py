"""How much of the processors' time others had: on a rented machine that is what a figure waits for."""

from __future__ import annotations

from pathlib import Path

STAT = Path("/proc/stat")
BUSY, STOLEN = (0, 1, 2, 5, 6), 7  # fields of its first line: user, nice, system, interrupts; steal


class Stolen:
    """Counts from its making on, where the system tells."""

    def __init__(self) -> None:
        self._before = _ticks()

    def share(self) -> float | None:
        """Return the part of the time that this machine wanted and did not get; None where nobody tells."""
        now = _ticks()
        if now is None or self._before is None:
            return None
        busy, stolen = (after - before for after, before in zip(now, self._before, strict=True))
        return stolen / max(1, busy + stolen)

    def told(self) -> str:
        """Return the same in words, for the end of a sentence."""
        share = self.share()
        if share is None:
            return "how much of its time others had, this system does not tell."
        return f"while all this ran, the hypervisor gave {share:.1%} of its time to others."


def _ticks() -> tuple[int, int] | None:
    if not STAT.exists():
        return None
    fields = [int(each) for each in STAT.read_text(encoding="utf-8").partition("\n")[0].split()[1:]]
    return sum(fields[each] for each in BUSY), fields[STOLEN]
