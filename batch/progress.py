"""One bar for a batch: rows done, failed, rows a minute, time left."""

from __future__ import annotations

import sys
import time


def span(seconds: float) -> str:
    """Seconds as a person says them: 40 s, 5 min, 3 h 20 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


class Bar:
    """Draws itself on a terminal; elsewhere it says a line every half minute."""

    def __init__(self, total: int, width: int = 24):
        self.total, self.width = total, width
        self.done = self.failed = 0
        self.start = time.monotonic()
        self.last = 0.0
        self.live = sys.stderr.isatty()

    def add(self, failed: bool) -> None:
        self.failed += failed
        self.done += not failed
        if time.monotonic() - self.last > (0.2 if self.live else 30):
            self.draw()

    def text(self) -> str:
        ended = self.done + self.failed
        spent = time.monotonic() - self.start
        full = self.width * ended // max(self.total, 1)
        said = f"[{'#' * full}{'.' * (self.width - full)}] {self.done}/{self.total} done"
        said += f", {self.failed} failed" if self.failed else ""
        if not ended:
            return f"{said}, starting"
        each = spent / ended
        return f"{said}, {60 / max(each, 1e-9):.1f} rows a minute, {span(each * (self.total - ended))} left"

    def draw(self, end: bool = False) -> None:
        self.last = time.monotonic()
        start = "\r\033[K" if self.live else ""
        print(start + self.text(), end="\n" if end or not self.live else "", file=sys.stderr, flush=True)
