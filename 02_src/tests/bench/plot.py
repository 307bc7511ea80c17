"""Pictures of what was measured, as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from statistics import median

from bench.results import CROWD, FLIGHT, TITLES, Results, title_of
from bench.scene import Scene

WIDTH = 760
NAMES, NUMBERS = 270, 70  # pixels left and right of the bars
BAR, GAP, TITLE = 18, 8, 34
LINES_HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 320, 64, 20, 40, 44
INK, FAINT, PAPER = "#1f2933", "#d9dee4", "#ffffff"
OURS, THEIRS, FLOOR = "#2563eb", "#9aa5b1", "#d9dee4"
COLOURS = ("#2563eb", "#ea8a0b", "#15915a", "#d92d20")
LABEL = 60  # pixels of the name of a line, beside which the next one stands
SHOWN = (
    "gateway_request",
    "gateway_request_sdk",
    "tensorzero",
    "ainvoke",
    "any_llm",
    "litellm_router",
    "raw_aiohttp",
)


def speed_plot(results: Results) -> str:
    """Draw requests a second as bars, for many callers at once and for many slow calls in flight."""
    parts: list[str] = []
    y = 10
    for scene in (CROWD, FLIGHT):
        y = _bars(parts, results, scene, y)
    return _page(parts, y)


def _bars(parts: list[str], results: Results, scene: Scene, y: int) -> int:
    """Add the bars of one scene below `y`, and return where they end."""
    figures = {each: results.middle(each, scene, lambda found: found.per_second) for each in SHOWN}
    known = {subject: figure for subject, figure in figures.items() if figure}
    if not known:
        return y
    longest = max(known.values())
    parts.append(f'<text x="10" y="{y + 18}" font-size="14" font-weight="bold">Requests/s: {title_of(scene)}</text>')
    y += TITLE
    for subject, figure in sorted(known.items(), key=lambda each: -each[1]):
        length = figure / longest * (WIDTH - NAMES - NUMBERS)
        colour = OURS if subject.startswith("gateway") else FLOOR if subject.startswith("raw") else THEIRS
        name = escape(TITLES[subject].replace("`", "").replace("the same", "LLMGateway.request"))
        parts += [
            f'<text x="{NAMES - 8}" y="{y + 13}" text-anchor="end">{name}</text>',
            f'<rect x="{NAMES}" y="{y}" width="{length:.1f}" height="{BAR}" fill="{colour}"/>',
            f'<text x="{NAMES + length + 6:.1f}" y="{y + 13}">{figure:,.0f}</text>',
        ]
        y += BAR + GAP
    return y + GAP


def memory_plot(samples: Mapping[str, Sequence[tuple[int, float]]], unit: str = "requests") -> str:
    """Draw memory in MiB over the number of requests, or of another `unit`; each line has a name."""
    most = max(requests for line in samples.values() for requests, _ in line)
    highest = 1.1 * max(mib for line in samples.values() for _, mib in line)

    def at(requests: float, mib: float) -> tuple[float, float]:
        x = LEFT + requests / most * (WIDTH - LEFT - RIGHT)
        return x, LINES_HEIGHT - BOTTOM - mib / highest * (LINES_HEIGHT - TOP - BOTTOM)

    middle = (LEFT + WIDTH - RIGHT) / 2
    parts = [
        f'<text x="{LEFT}" y="20" font-size="14" font-weight="bold">Memory of the process, MiB</text>',
        f'<text x="{middle}" y="{LINES_HEIGHT - 8}" text-anchor="middle">{unit}</text>',
    ]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, _ = at(share * most, 0)
        _, y = at(0, share * highest)
        anchor = "end" if share == 1 else "middle"  # the last one ends where the picture does
        parts += [
            f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="{FAINT}"/>',
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{share * highest:.0f}</text>',
            f'<text x="{x:.1f}" y="{LINES_HEIGHT - BOTTOM + 16}" text-anchor="{anchor}">{share * most:,.0f}</text>',
        ]
    for number, (name, line) in enumerate(samples.items()):
        steps = " ".join("{:.1f},{:.1f}".format(*at(*each)) for each in line)
        colour = COLOURS[number % len(COLOURS)]
        beside, above = LEFT + 10 + LABEL * number, at(0, median(mib for _, mib in line))[1] - 8
        parts += [
            f'<polyline points="{steps}" fill="none" stroke="{colour}" stroke-width="2"/>',
            f'<text x="{beside}" y="{above:.1f}" fill="{colour}">{escape(name)}</text>',
        ]
    return _page(parts, LINES_HEIGHT)


def _page(parts: Sequence[str], height: int) -> str:
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}">',
        f'<g font-family="sans-serif" font-size="12" fill="{INK}">',
        f'<rect width="{WIDTH}" height="{height}" fill="{PAPER}"/>',
    ]
    return "\n".join([*head, *parts, "</g></svg>\n"])
