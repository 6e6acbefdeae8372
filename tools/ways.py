"""python tools ways: one edit made in six ways, with what a probe and the background say of each under it.

Runs six shipped workflows on a real server and writes docs/pictures/six_ways.jpg, README's figure; its figures are
printed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from PIL import Image

from ..batch import engines
from ..samplers.measure.charts import from_picture, heading, stacked, to_picture
from . import judge, run, sheet, workflows

FIGURE = Path(__file__).resolve().parent.parent / "docs" / "pictures" / "six_ways.jpg"
#: workflow -> what the figure calls it; all edit demo_scene.png by the same two prompts
WAYS = {
    "prompt_to_prompt_photo": "Prompt-to-Prompt",
    "diffedit": "DiffEdit",
    "direct_edit": "FlowEdit",
    "invert_image": "Exact inversion",
    "null_text": "Null-text inversion",
    "proximal_guidance": "Proximal guidance",
}
COLUMNS = 3


def column(picture: Image.Image, name: str, score: str) -> torch.Tensor:
    """[1, H, W, 3]: a picture with its name and score beneath."""
    side = sheet.CELL - sheet.GAP
    cell = torch.nn.functional.pad(
        from_picture(sheet.fit(picture, side)), (0, 0, sheet.GAP, 0, sheet.GAP, 0), value=1.0
    )
    return stacked([cell, heading(name, sheet.CELL, 15), heading(score, sheet.CELL, 12)])


def figure(cells: list[torch.Tensor], source: torch.Tensor) -> Image.Image:
    """The source beside two rows of ways."""
    rows = [torch.cat(cells[i : i + COLUMNS], 2) for i in range(0, len(cells), COLUMNS)]
    ways = stacked(rows)
    left = torch.ones(1, ways.shape[1], source.shape[2], 3)
    top = (ways.shape[1] - source.shape[1]) // 2
    left[:, top : top + source.shape[1]] = source
    return to_picture(torch.cat([left, ways], 2))


def main(arguments: list[str]) -> int:
    argparse.ArgumentParser(prog="python tools ways", description=__doc__).parse_args(arguments)
    cells = []
    with engines.running(engines.embedded()) as server:
        infos = server.client.object_info()
        for name, title in WAYS.items():
            flow = workflows.load(name)
            result = run.queue(server.client, name, flow, infos)
            source = workflows.source_pictures(flow)[0]
            before = judge.compared(flow, result, [source])
            picture = result.pictures[workflows.result(flow)][0]
            kept = judge.background(workflows.source_names(flow)[0], before, picture)
            words = f"{judge.seen(picture)}, background {kept:.0f} dB"
            print(f"{title}: {words}, {result.seconds:.0f} s", flush=True)
            cells.append(column(picture, title, words))
        first = column(source, "Your picture", "“red” becomes “green”")
    FIGURE.parent.mkdir(exist_ok=True)
    figure(cells, first).save(FIGURE, quality=90)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
