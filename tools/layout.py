"""Where a workflow's nodes stand on the page: numbered, coloured groups in one row or two, at most WIDTH wide, so that
the page opens at a zoom at which text can be read.

The groups are "1 your picture" (what is loaded), "2 words", "3 edit" and "4 result"; a group's nodes stand in columns,
in the order in which they run. A workflow stands in the arrangement (PLANS) that ends highest on the page, with what a
run adds, so that the result is seen without scrolling where that can be. Encoders and decoders are folded to their
title.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from . import workflows
from .sizes import FOLDED, NOTE_WIDTH, PILL, Info, kinds, room
from .workflows import Workflow, is_link

WIDTH = 1600  # pixels of the page, from the note to the end of the last group
TITLE = 30  # a node's title stands above its `pos`
GAP = 20  # between nodes, and between a group's edge and its nodes
HEAD = 40  # a group's title
#: title and colour of each group; the first has another title where no picture is loaded
GROUPS = (("your picture", "#3f789e"), ("words", "#5a8a4a"), ("edit", "#b06634"), ("result", "#7a6a9e"))
NO_PICTURE = "model"
#: arrangements of the groups: rows, and whether the note stands above the first group in place of beside it
PLANS = ((((0, 1), (2, 3)), False), (((0, 1, 2, 3),), False), (((0, 1, 2, 3),), True))
LOADED = {"MODEL", "CLIP", "VAE", "IMAGE", "MASK", "LATENT"}  # a picture's or model's way to the edit
EDITS = {"NOISE", "SAMPLER", "SIGMAS", "GUIDER", "CONDITIONING"}  # part of the edit, though nothing leads to it


def parents(workflow: Workflow) -> dict[str, list[str]]:
    """{node: the nodes that feed it}."""
    return {
        key: [str(value[0]) for value in node["inputs"].values() if is_link(value, workflow)]
        for key, node in workflow.items()
    }


def run_order(workflow: Workflow) -> list[str]:
    """Ids, each after what feeds it. ValueError if the workflow has a loop."""
    feeds, depth = parents(workflow), {}

    def column(key: str, path: tuple[str, ...] = ()) -> int:
        if key in path:
            raise ValueError(f"The workflow has a loop through node {key}.")
        if key not in depth:
            depth[key] = max((column(parent, (*path, key)) + 1 for parent in feeds[key]), default=0)
        return depth[key]

    return sorted(workflow, key=lambda key: (column(key), int(key)))


def grouped(workflow: Workflow, infos: dict[str, Info]) -> dict[str, int]:
    """{node: the group it stands in}, by what goes in and comes out of it."""
    feeds, order, found = parents(workflow), run_order(workflow), {}
    for key in order:
        info = infos[workflow[key]["class_type"]]
        takes, gives = kinds(info), set(info["output"])
        if "CONDITIONING" in gives and "CLIP" in takes and "MODEL" not in takes:
            found[key] = 1
        elif gives & LOADED or not feeds[key] and gives and not gives & EDITS:
            whole = info["name"].startswith("NullText_") or "LATENT" in gives
            found[key] = 2 if any(found[p] for p in feeds[key]) or "MODEL" in takes and whole else 0
        else:
            found[key] = 2
    for key in reversed(order):
        info = infos[workflow[key]["class_type"]]
        used = [child for child in workflow if key in feeds[child]]
        shows = not set(info["output"]) - {"IMAGE", "MASK", "STRING", "FLOAT", "INT"} and feeds[key]
        if found[key] != 1 and shows and not kinds(info) & {"MODEL", "GUIDER"} and all(found[c] == 3 for c in used):
            found[key] = 3
    return found


@dataclass(frozen=True)
class Box:
    """What a node takes of its column: `height` with room for what a run adds, `least` before a run."""

    width: int
    height: int
    least: int


@dataclass(frozen=True)
class Row:
    """Groups beside each other: where the first begins, how much lower if the note is there, the height of all."""

    left: int
    top: int
    under: int
    limit: int
    columns: dict[int, list[list[str]]]


def _columns(keys: list[str], boxes: dict[str, Box], limit: int, last: bool) -> list[list[str]]:
    """The nodes in columns no higher than the limit, in order. In the last row a column's last node may grow."""
    columns, free = [], 0
    for key in keys:
        need = boxes[key].least if last else boxes[key].height
        if not columns or free < need:
            columns.append([])
            free = limit
        columns[-1].append(key)
        free -= boxes[key].height
    return columns


def _widths(packed: list[list[str]], boxes: dict[str, Box]) -> int:
    """Of a group with these columns."""
    return GAP + sum(max(boxes[key].width for key in column) + GAP for column in packed)


def _row(inside: dict[int, list[str]], boxes: dict[str, Box], left: int, top: int, under: int, last: bool) -> Row:
    """The lowest row in which these groups end before WIDTH; where none does, one column for each group."""
    first = next(iter(inside))
    limit = max(
        (boxes[key].least if last else boxes[key].height) + under * (index == first)
        for index, keys in inside.items()
        for key in keys
    )
    while True:
        row = Row(left, top, under, limit, {})
        for index, keys in inside.items():
            row.columns[index] = _columns(keys, boxes, limit - under * (index == first), last)
        if _end(row, boxes) <= WIDTH or all(len(packed) == 1 for packed in row.columns.values()):
            return row
        limit += 20


def _end(row: Row, boxes: dict[str, Box]) -> int:
    """Where the row's last group ends, in pixels from the left."""
    x = row.left - GAP
    for i, packed in enumerate(row.columns.values()):
        x += GAP + max(_widths(packed, boxes), NOTE_WIDTH if row.under and not i else 0)
    return x


def _rows(plan: tuple, member: dict[int, list[str]], boxes: dict[str, Box], note: int) -> tuple[int, list[Row]]:
    """(height on the page after a run, rows) of a plan, by the nodes of each group and the note's height."""
    lines, above = plan
    found = [{index: member[index] for index in line if index in member} for line in lines]
    found, rows, top = [line for line in found if line], [], 0
    for line in found:
        first, last = not rows, line is found[-1]
        left = NOTE_WIDTH + 2 * GAP if first and not above else 0
        row = _row(line, boxes, left, top, HEAD + note + GAP if first and above else 0, last)
        if first and not above:
            row = replace(row, limit=max(row.limit, note))
        rows.append(row)
        top += HEAD + row.limit + GAP
    first = next(iter(rows[-1].columns))
    grown = max(
        sum(boxes[key].height for key in column) + rows[-1].under * (index == first)
        for index, packed in rows[-1].columns.items()
        for column in packed
    )
    return rows[-1].top + HEAD + max(rows[-1].limit, grown), rows


def arranged(member: dict[int, list[str]], boxes: dict[str, Box], note: int) -> list[Row]:
    """The rows of the plan that ends highest on the page, of those that are no wider than WIDTH."""
    found = [_rows(plan, member, boxes, note) for plan in PLANS]
    fits = [each for each in found if all(_end(row, boxes) <= WIDTH for row in each[1])]
    return min(fits or found[:1], key=lambda each: each[0])[1]


def place(workflow: Workflow, nodes: dict[str, dict], infos: dict[str, Info], note: dict) -> list[dict[str, Any]]:
    """Set every node's `pos` and fold what has nothing to set; the graph's groups."""
    order, group_of = run_order(workflow), grouped(workflow, infos)
    boxes = {}
    for key, node in nodes.items():
        if node["type"] in FOLDED:
            node["flags"] = {"collapsed": True}
            boxes[key] = Box(PILL, TITLE + GAP, TITLE + GAP)
        else:
            least = TITLE + node["size"][1] + GAP
            boxes[key] = Box(node["size"][0], least + room(infos[node["type"]]), least)
    picture = any(is_picture(node) for node in workflow.values())
    shown = [index for index in range(len(GROUPS)) if index in group_of.values()]
    member = {index: [key for key in order if group_of[key] == index] for index in shown}
    groups = []
    for row in arranged(member, boxes, note["size"][1]):
        x = row.left
        if not groups:
            note["pos"] = [0, row.top + HEAD]
        for index, packed in row.columns.items():
            under = row.under if index == shown[0] else 0
            start, x = x, x + GAP
            for column in packed:
                y = row.top + under + HEAD + TITLE
                for key in column:
                    nodes[key]["pos"] = [x, y]
                    y += boxes[key].height
                x += max(boxes[key].width for key in column) + GAP
            x = max(x, start + NOTE_WIDTH) if under else x
            title = NO_PICTURE if index == 0 and not picture else GROUPS[index][0]
            groups.append(
                {
                    "title": f"{shown.index(index) + 1} {title}",
                    "bounding": [start, row.top + under, x - start, HEAD + row.limit - under],
                    "color": GROUPS[index][1],
                    "font_size": 24,
                    "flags": {},
                }
            )
            x += GAP
    return groups


def is_picture(node: dict) -> bool:
    """Whether a node of an API file loads a picture."""
    return node["class_type"] in (*workflows.PICTURES, "NullText_TuningPictures")
