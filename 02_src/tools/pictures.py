"""Draw the pictures of how pace and order work, from the real gateway in virtual time: 00_docs/pictures/*.svg.

`make pictures` writes them anew; the same code gives the same pictures.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from pathlib import Path

from llm_gateway import LLMMessage, LLMRequest, RequestPriority
from llm_gateway.config import load_config
from llm_gateway.simulation import SimulatedGateway, SimulatedProvider, Work, run_virtual

PICTURES = Path(__file__).resolve().parents[2] / "00_docs" / "pictures"
WIDTH, HEIGHT = 760, 320
LEFT, RIGHT, TOP, BOTTOM = 64, 20, 40, 44
INK, FAINT, PAPER = "#1f2933", "#d9dee4", "#ffffff"
BLUE, ORANGE, GREEN, RED = "#2563eb", "#ea8a0b", "#15915a", "#d92d20"
MODEL = "gpt-4o-mini"
FLOOD = 450  # tenths of a second

Points = Sequence[tuple[float, float]]


class Figure:
    """Axes and what is drawn into them, as SVG."""

    def __init__(self, title: str, *, x: tuple[float, float], y: tuple[float, float], labels: tuple[str, str]) -> None:
        self._x, self._y = x, y
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}">',
            f'<g font-family="sans-serif" font-size="12" fill="{INK}">',
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="{PAPER}"/>',
            f'<text x="{LEFT}" y="20" font-size="14" font-weight="bold">{title}</text>',
            f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{labels[0]}</text>',
            f'<g transform="translate(14 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)">',
            f'<text text-anchor="middle">{labels[1]}</text></g>',
        ]

    def ticks(self, xs: Iterable[float], ys: Iterable[float]) -> None:
        """Draw the grid with its numbers."""
        for x in xs:
            self._line((x, self._y[0]), (x, self._y[1]), FAINT)
            self._parts.append(
                f'<text x="{self._at_x(x):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{x:g}</text>'
            )
        for y in ys:
            self._line((self._x[0], y), (self._x[1], y), FAINT)
            self._parts.append(f'<text x="{LEFT - 6}" y="{self._at_y(y) + 4:.1f}" text-anchor="end">{y:g}</text>')

    def path(self, points: Points, colour: str) -> None:
        """Draw a line through `points`."""
        steps = " ".join(f"{self._at_x(x):.1f},{self._at_y(y):.1f}" for x, y in points)
        self._parts.append(f'<polyline points="{steps}" fill="none" stroke="{colour}" stroke-width="2"/>')

    def dots(self, points: Points, colour: str) -> None:
        """Draw a dot at each of `points`."""
        self._parts += [
            f'<circle cx="{self._at_x(x):.1f}" cy="{self._at_y(y):.1f}" r="2.2" fill="{colour}" fill-opacity="0.6"/>'
            for x, y in points
        ]

    def legend(self, entries: Sequence[tuple[str, str]]) -> None:
        """Name the colours, at the top on the right."""
        x = WIDTH - RIGHT - sum(30 + 7 * len(name) for name, _ in entries)
        for name, colour in entries:
            self._parts.append(f'<rect x="{x}" y="11" width="10" height="10" fill="{colour}"/>')
            self._parts.append(f'<text x="{x + 15}" y="20">{name}</text>')
            x += 30 + 7 * len(name)

    def save(self, name: str) -> None:
        """Write the file."""
        (PICTURES / name).write_text("\n".join([*self._parts, "</g></svg>\n"]), encoding="utf-8")

    def _line(self, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
        self._parts.append(
            f'<line x1="{self._at_x(start[0]):.1f}" y1="{self._at_y(start[1]):.1f}" x2="{self._at_x(end[0]):.1f}" '
            f'y2="{self._at_y(end[1]):.1f}" stroke="{colour}"/>'
        )

    def _at_x(self, x: float) -> float:
        return LEFT + (x - self._x[0]) / (self._x[1] - self._x[0]) * (WIDTH - LEFT - RIGHT)

    def _at_y(self, y: float) -> float:
        return HEIGHT - BOTTOM - (y - self._y[0]) / (self._y[1] - self._y[0]) * (HEIGHT - TOP - BOTTOM)


def ask(priority: RequestPriority = RequestPriority.NORMAL) -> LLMRequest:
    """Return a request of average size."""
    question = LLMMessage(role="user", content="What is a queue, and when is it better than a stack?")
    return LLMRequest(model=MODEL, messages=[question], priority=priority, max_tokens=64)


def gateway_under(limits: dict[str, object]) -> SimulatedGateway:
    """Return the real gateway before a provider that enforces `limits` and answers in half a second."""
    config = load_config({"models": {MODEL: {"limits": limits}}, "logs": {"dir": False}, "seed": 1})
    work = Work(input_tokens=20, output_tokens=40, seconds=0.5)
    return SimulatedGateway(config, SimulatedProvider(work=lambda _request, _rng: work, seed=1))


async def bucket() -> None:
    """Draw the permits of one limit under two bursts, and the calls that began."""
    levels: list[tuple[float, float]] = []
    calls: list[tuple[float, float]] = []
    now = asyncio.get_running_loop().time

    async def caller() -> None:
        response = await gateway.request(ask())
        assert response.receipt is not None  # noqa: S101 - the gateway gives one with every answer
        calls.append((now() - began - response.receipt.provider_time, 0.0))

    async with gateway_under({"rpm": 600, "safety": 1.0}) as gateway, asyncio.TaskGroup() as group:
        began = now()
        for step in range(700):
            if step in {50, 450}:
                for _ in range(30):
                    group.create_task(caller())
            await asyncio.sleep(0.01)
            pace = gateway.get_stats().get("pace", {}).get(MODEL)
            levels.append((now() - began, pace["limits"]["requests"]["level"] if pace else 10.0))
    figure = Figure(
        "Two bursts of 30 requests, 600 a minute", x=(0, 7), y=(0, 12), labels=("seconds", "permits in the bucket")
    )
    figure.ticks(range(8), range(0, 13, 2))
    figure.path(levels, BLUE)
    figure.dots([(x, 11.0) for x, _ in calls], ORANGE)
    figure.legend([("permits", BLUE), ("a call begins", ORANGE)])
    figure.save("bucket.svg")


async def flood() -> None:
    """Draw what requests of each class waited while LOW floods the queue."""
    waits: dict[RequestPriority, list[tuple[float, float]]] = {each: [] for each in RequestPriority}
    now = asyncio.get_running_loop().time

    async def caller(priority: RequestPriority) -> None:
        came = now() - began
        response = await gateway.request(ask(priority))
        assert response.receipt is not None  # noqa: S101 - the gateway gives one with every answer
        waits[priority].append((came, response.receipt.queue_wait))

    async with gateway_under({"rpm": 600}) as gateway, asyncio.TaskGroup() as group:
        began = now()
        for step in range(600):
            if step < FLOOD:
                group.create_task(caller(RequestPriority.LOW))
            if step % 10 == 0:
                group.create_task(caller(RequestPriority.HIGH))
            if step % 3 == 0:
                group.create_task(caller(RequestPriority.NORMAL))
            await asyncio.sleep(0.1)
    longest = max(wait for points in waits.values() for _, wait in points)
    figure = Figure(
        "LOW offers 600 a minute, and so much is the limit",
        x=(0, 60),
        y=(0, longest * 1.05),
        labels=("seconds; a request stands where it came", "seconds in the queue"),
    )
    figure.ticks(range(0, 61, 10), [round(longest * part / 4) for part in range(5)])
    colours = {RequestPriority.LOW: GREEN, RequestPriority.NORMAL: ORANGE, RequestPriority.HIGH: RED}
    for priority, colour in colours.items():
        figure.dots(waits[priority], colour)
    figure.legend([(priority.name, colour) for priority, colour in colours.items()])
    figure.save("flood.svg")


def main() -> None:
    """Draw all pictures."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    for draw in (bucket, flood):
        run_virtual(draw())


if __name__ == "__main__":
    main()
