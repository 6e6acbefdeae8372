"""RePaint's error against its network calls as a picture, one panel per mixture."""

from __future__ import annotations

import math
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

COLOURS = {"naive": (140, 140, 140), "ours": (214, 39, 40), "official": (31, 119, 180), "exact-leaning": (44, 160, 44)}
LABELS = {"ours": "ours (default: large dot)", "official": "the paper's (last: 250/10/10)"}
INK, AXIS, FAINT = (20, 20, 20), (120, 120, 120), (205, 205, 205)
WIDTH, HEIGHT, LEGEND = 430, 400, 36
X_TICKS, Y_TICKS = (20, 50, 100, 200, 500, 1000, 2000), (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def panel(series: dict[str, list[dict]], name: str, floor: float, default: int) -> Image.Image:
    """Error of one mixture (log) against calls (log), one line per method; dashed: 10 % above the 2410-call error."""
    page, font = Image.new("RGB", (WIDTH, HEIGHT), "white"), ImageFont.load_default(12)
    pen = ImageDraw.Draw(page)
    left, top, right, bottom = 52, 28, WIDTH - 12, HEIGHT - 42 - LEGEND
    points = [p for line in series.values() for p in line]
    x0, x1 = (math.log10(f(p["calls"] for p in points)) for f in (min, max))
    y0, y1 = math.log10(0.9 * min(floor, *(p[name] for p in points))), math.log10(1.1 * max(p[name] for p in points))

    def at(calls: float, error: float) -> tuple[float, float]:
        x, y = (math.log10(calls) - x0) / (x1 - x0), (math.log10(error) - y0) / (y1 - y0)
        return left + x * (right - left), bottom - y * (bottom - top)

    pen.rectangle((left, top, right, bottom), outline=AXIS)
    pen.text((left, 7), f"{name}: error against the true conditional", INK, font)
    pen.text((left + 105, bottom + 22), "network calls per picture", INK, font)
    for tick in X_TICKS:
        if x0 <= math.log10(tick) <= x1:
            x = at(tick, 10**y0)[0]
            pen.line((x, bottom, x, bottom + 5), fill=AXIS)
            pen.text((x - 10, bottom + 6), str(tick), INK, font)
    for tick in Y_TICKS:
        if y0 <= math.log10(tick) <= y1:
            y = at(10**x0, tick)[1]
            pen.line((left - 4, y, left, y), fill=AXIS)
            pen.text((8, y - 8), f"{tick:g}", INK, font)
    y = at(10**x0, floor)[1]
    pen.line((left, y, right, y), fill=FAINT)
    pen.text((right - 150, y - 15), "draws of the truth itself", AXIS, font)
    paper = next(p[name] for p in series["official"] if p["calls"] == 2410)
    y = at(10**x0, 1.1 * paper)[1]
    for x in range(left, right, 10):
        pen.line((x, y, min(x + 5, right), y), fill=COLOURS["official"])
    for i, (method, line) in enumerate(series.items()):
        line = sorted(line, key=lambda p: p["calls"])
        places = [at(p["calls"], p[name]) for p in line]
        if len(places) > 1:
            pen.line([c for place in places for c in place], fill=COLOURS[method], width=2)
        for p, (px, py) in zip(line, places):
            r = 6 if method == "ours" and p["calls"] == default else 3
            pen.ellipse((px - r, py - r, px + r, py + r), fill=COLOURS[method])
        place = ((left, left + 180)[i % 2], bottom + 42 + 15 * (i // 2))
        pen.text(place, LABELS.get(method, method), COLOURS[method], font)
    return page


def plot(series: dict[str, list[dict]], floor: dict[str, float], default: int, path: Path) -> None:
    """One panel per mixture beside each other. default: calls of the default schedule."""
    panels = [panel(series, name, floor[name], default) for name in ("bimodal", "correlated")]
    page = Image.new("RGB", (WIDTH * len(panels), HEIGHT), "white")
    for i, each in enumerate(panels):
        page.paste(each, (i * WIDTH, 0))
    path.parent.mkdir(parents=True, exist_ok=True)
    page.save(path, quality=90)
