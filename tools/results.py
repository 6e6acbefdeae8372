"""What the demo keeps of its runs: pictures, figures, one contact sheet, the nodes' reports."""

from __future__ import annotations

import json
import math
from pathlib import Path

from PIL import Image

from ..batch.client import Result
from ..samplers.measure import charts, metrics
from . import judge, sheet, workflows

RECONSTRUCTION, REPORTS = "Reconstruction", "reports.txt"


def keep(folder: Path, name: str, workflow: workflows.Workflow, result: Result) -> None:
    """Save a workflow's pictures under their titles, as the server made them: with the workflow inside."""
    named = workflows.titles(workflow)
    for key, files in result.files.items():
        for i, content in enumerate(files):
            title = named[key] + (f" {i + 1}" if len(files) > 1 else "")
            file = "".join(c if c.isalnum() else "_" for c in f"{name}_{key}_{title}".lower())
            (folder / f"{file}.png").write_bytes(content)


def row(name: str, workflow: workflows.Workflow, result: Result, source: list[Image.Image]) -> sheet.Row:
    """Its row of the contact sheet: the source, the reconstruction if there is one, and the result."""
    named, last = workflows.titles(workflow), workflows.result(workflow)
    keys = sorted((key for key in result.pictures if named[key] == RECONSTRUCTION and key != last), key=int)
    keys += [last] if last in result.pictures else sorted(result.pictures, key=int)[-1:]
    cells = [("source", picture) for picture in source[:1]]
    cells += [(named[key], sheet.tiled(result.pictures[key])) for key in keys]
    return sheet.Row(workflows.headed(workflow).get("heading", name), "", cells)


def figures(workflow: workflows.Workflow, result: Result, source: list[Image.Image]) -> dict[str, object]:
    """What was measured: steps, seconds, PSNR of a reconstruction or else of the background, what a probe sees on the
    result of a workflow that says what to see, what the nodes report."""
    found: dict[str, object] = {"steps": result.steps, "seconds": round(result.seconds, 2)}
    by_title = {
        title: result.pictures[key] for key, title in workflows.titles(workflow).items() if key in result.pictures
    }
    before = judge.compared(workflow, result, source)
    again = by_title.get(RECONSTRUCTION)
    last = workflows.result(workflow)
    meta, names = workflow[last].get("_meta", {}) if last else {}, workflows.source_names(workflow)
    if again and before is not None and again[0].size == before.size:
        a, b = (charts.from_picture(one).movedim(-1, 1) for one in (before, again[0]))
        found["reconstruction_db"] = _decibels(float(metrics.psnr(a, b)))
    elif meta.get("keeps") and names and before is not None:
        found["background_db"] = _decibels(judge.background(names[0], before, result.pictures[last][0]))
    if meta.get("shows") and last in result.pictures:
        found["shows"] = judge.seen(result.pictures[last][0])
    if result.texts:
        found["reports"] = result.texts
    return found


def _decibels(ratio: float | None) -> object:
    return "exact" if ratio == math.inf else ratio and round(ratio, 2)


def said(found: dict[str, object]) -> str:
    """The figures of one workflow in one line, as "42.7 dB, green circle, 38 s"."""
    parts = []
    for name, words in (("reconstruction_db", "{} dB"), ("background_db", "background {} dB")):
        if (value := found.get(name)) is not None:
            parts.append("exact" if value == "exact" else words.format(f"{value:.1f}"))
    parts += [str(found["shows"])] if "shows" in found else []
    return ", ".join([*parts, f"{found['seconds']:.0f} s"])


class Kept:
    """What a demo leaves: rows of the contact sheet, figures by workflow, failures in a sentence each."""

    def __init__(self, folder: Path, model: str = "the demo model"):
        self.title = f"ComfyUI-NullText, drawn by {model}"
        self.folder, self.rows, self.figures, self.failures = folder, [], {}, []

    def write(self) -> Path:
        """Write contact sheet, figures and reports; the sheet's path."""
        page = self.folder / "contact_sheet.png"
        sheet.contact_sheet(self.title, self.rows).save(page)
        (self.folder / "figures.json").write_text(json.dumps(self.figures, indent=1) + "\n", encoding="utf-8")
        reports = [
            f"{name}\n{'=' * len(name)}\n" + "\n\n".join(map(str, found.get("reports", ())))
            for name, found in self.figures.items()
        ]
        (self.folder / REPORTS).write_text("\n\n\n".join(reports) + "\n", encoding="utf-8")
        return page
