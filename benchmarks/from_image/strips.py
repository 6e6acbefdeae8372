"""Strips for the help pages, from this bench's own runs: ILVR over factor and stop, SDEdit over t0, cartoons.

Each strip is a picture under web/docs/pictures/, made anew by every whole run of from_image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ...demo import scenes
from ...samplers.core import VE, gaussian, guided
from ...samplers.measure.charts import line_chart, to_picture
from ...samplers.picture.ilvr import sample_ilvr
from ...samplers.picture.lowpass import bicubic_low_pass
from ...samplers.picture.sdedit import sdedit_sigmas
from ...tools.sheet import Row, contact_sheet
from ..harness import OUTPUT, ROOT, Bench, kept_pictures
from ..lab import Demo, some

PICTURES = ROOT / "web" / "docs" / "pictures"
ILVR_CFG, FACTORS, STOPS = 3.0, (2, 4, 8), (0.2, 0.5, 0.8, 1.0)
SHOWN = 4  # scenes in a strip: the first ones, not chosen
CARTOON_COLUMNS = {
    "source": "source",
    "plain, cfg 6": "ordinary run",
    "imaged_paper": "Image-D",
    "backd_paper": "Back-D",
    "imaged_match": "Image-D, match",
    "backd_match": "Back-D, match",
    "bound_alone": "the bound alone",
    "sdedit": "SDEdit from 0.5",
    "blur": "ordinary run, blurred",
}


def error_chart(ratios: dict[str, dict[str, float]], mixtures: Sequence[str], path: Path) -> None:
    """ratios: way -> mixture -> error over that of 250/10/10. A line for each way over the mixtures."""
    lines = {name: [math.log10(way[m]) for m in mixtures] for name, way in ratios.items()}
    title, across = "log10 of the error over that of the paper's 2410 calls", "mixture, in the table's order"
    path.parent.mkdir(parents=True, exist_ok=True)
    to_picture(line_chart(title, lines, width=860, height=420, x_label=across)).save(path, quality=90)


def folder(bench: Bench) -> Path:
    """Where a run's pictures go: the help pages', or beside the results of a quick one."""
    return OUTPUT if bench.quick else PICTURES


def shown(image: Tensor) -> Image.Image:
    """[3, H, W] in 0..1 as a picture."""
    return to_picture(image[None].movedim(1, -1))


def save(title: str, rows: list[Row], columns: int, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(title, rows, columns).save(path, quality=85)


def ilvr(demo: Demo, z: Tensor, wanted: scenes.Scenes, low_pass, stop: float, steps: int) -> Tensor:
    """A run of `wanted` captions that keeps the coarse part of z for the share `stop` of its steps."""
    denoise, noise = guided(*demo.pair(wanted), ILVR_CFG), gaussian(z, 3)
    sigmas = sdedit_sigmas(demo.at, 1.0, steps).float()
    x, count = sigmas[0] * noise(), round(stop * (len(sigmas) - 1))
    return sample_ilvr(denoise, x, sigmas, reference=z, low_pass=low_pass, stop=count, process=VE, noise=noise)


def ilvr_strip(bench: Bench, demo: Demo) -> None:
    """One reference and one caption, the same noise everywhere: rows of factors, columns of stops."""
    part = some(1, 33, lambda s: s.texture == 1)
    wanted = some(1, 34, lambda s: s.texture == 0)
    source = scenes.draw(part)[0]
    settings = [(factor, stop) for factor in FACTORS for stop in STOPS]

    @torch.no_grad()
    def make(items: list[int]) -> dict[str, Tensor]:
        z, steps = demo.encode(source), 4 if bench.quick else 30
        runs = [(bicubic_low_pass(factor), stop) for factor, stop in (settings[i] for i in items)]
        return {"image": torch.cat([demo.decode(ilvr(demo, z, wanted, *run, steps)) for run in runs])}

    made = kept_pictures(bench, "ilvr strip, bicubic", len(settings), make, len(STOPS))["image"]
    rows = []
    for k, factor in enumerate(FACTORS):
        cells = [("reference", shown(source[0]))]
        for j, stop in enumerate(STOPS):
            cells.append((f"stop {stop:g}", shown(made[k * len(STOPS) + j])))
        rows.append(Row(f"factor {factor} cells ({8 * factor} pixels)", "", cells))
    title = "ILVR: coarse content of a reference, everything else by the prompt"
    save(title, rows, len(STOPS) + 1, folder(bench) / "ilvr_strip.jpg")


def sdedit_strip(bench: Bench, guide: Tensor, made: dict[float, Tensor], curve: list[list]) -> None:
    """Rows of scenes, columns of t0; each column's caption tells distance and realism over all scenes.

    guide [N, 3, H, W]; made: t0 -> images of the same scenes; curve: [t0, distance, realism or None] per t0."""
    rows = []
    for i in range(min(SHOWN, len(guide))):
        cells = [("scribble", shown(guide[i]))]
        for t0, distance, realism in curve:
            said = f"t0 {t0:g}: rms {distance:.3f}" + ("" if realism is None else f", KID {realism:.4g}")
            cells.append((said if i == 0 else f"t0 {t0:g}", shown(made[t0][i])))
        rows.append(Row("", "", cells))
    rows[0].line = "rms: distance to the scribble (faithful: small). KID: distance to real scenes (realistic: small)."
    save("SDEdit over t0", rows, len(curve) + 1, folder(bench) / "sdedit_strip.jpg")


def cartoon_strip(bench: Bench, made: dict[str, Tensor], measured: dict[str, tuple[float, float]]) -> None:
    """Rows of scenes, columns of ways beside both controls; captions tell what all scenes measure.

    made: way -> images [N, 3, H, W] of the same scenes; measured: way -> (flat drop, edge change)."""
    rows = []
    for i in range(min(SHOWN, len(made["source"]))):
        cells = []
        for name, title in CARTOON_COLUMNS.items():
            drop, edges = measured[name]
            told = i == 0 and not name.startswith("plain")
            said = f"{title}: flat drop {drop:.2f}, edges {edges:+.2f}" if told else title
            cells.append((said, shown(made[name][i])))
        rows.append(Row("", "", cells))
    rows[0].line = "Against the ordinary run of the same cfg. Flat drop: texture lost in flat regions (cartoon: much). "
    rows[0].line += "Edges: contrast along the objects' borders (cartoon: not less). "
    rows[0].line += "The blur loses as much texture as Image-D."
    save("Null-text disturbance beside its controls", rows, len(CARTOON_COLUMNS), folder(bench) / "cartoon_strip.jpg")
