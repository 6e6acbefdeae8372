"""make families: every node that takes a MODEL, on tiny stand-ins of every model family that the engine knows.

The engine is the checkout that COMFYUI_PATH names, else the embedded one. --write puts the table into README.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path

from ...batch import engines
from ...nodes import NODE_CLASS_MAPPINGS
from ..harness import OUTPUT, table
from .cells import CELLS
from .graphs import BESIDE
from .run import FAILS, LAW, REFUSED, WORKS, Outcome, figures, plant_stand_ins, run_cells
from .stand_ins import FAMILIES, WEIGHTS

MARKS = {WORKS: "✓", REFUSED: "–", FAILS: "✗", LAW: "law"}
KEPT = OUTPUT / "families.json"
README = engines.ROOT / "README.md"
#: what the row of Train Embedding must not be read as
ENCODER = (
    "Every network was run with the demo model's text encoder, a CLIP. Train Embedding's row therefore says nothing "
    "about a family's own text encoder: the node learns words in CLIP encoders only (SD 1, SD 2, SDXL). On SD3 and "
    "Flux it learns them in their CLIPs, while T5 reads the captions without the word; models without a CLIP (T5, "
    "Qwen, Gemma alone) are refused in a sentence."
)
START, END = "<!-- families: made by make families -->", "<!-- families: end -->"


def title(node: str) -> str:
    return NODE_CLASS_MAPPINGS[node].TITLE


def summary(found) -> str:
    """What was checked, from the families that it works on; where it is a number of decibels, the least of them."""
    says = [outcome.says for outcome in found if outcome.kind == WORKS]
    if says and says[0].startswith("null-text"):
        return "with null-text the picture comes back at least as well as without"
    rates = [int(n) for said in says for n in re.findall(r"comes back at (\d+) dB", said)]
    return (
        f"the picture comes back but for rounding ({min(rates)} dB or better)" if rates else (says[0] if says else "")
    )


def markdown(found, engine: str) -> str:
    """The table as README holds it."""
    names = list(dict.fromkeys(family for _, family in found))
    lines = ["| node | " + " | ".join(names) + " | what was checked |", "|---|" + ":-:|" * len(names) + "---|"]
    for node in dict.fromkeys(node for node, _ in found):
        row = [found[node, family] for family in names]
        lines.append("| " + " | ".join([title(node), *(MARKS[each.kind] for each in row), summary(row)]) + " |")
    date = time.strftime("%Y-%m-%d")
    return (
        f"Measured on {engine}, {date}, with random weights in each family's own key layout at a small width. "
        "✓ it runs, and its results pass the check of the last column; – it says in one sentence why not. "
        f"{ENCODER}\n\n" + "\n".join(lines)
    )


def kept(engine: str) -> dict[tuple[str, str], Outcome]:
    """What the plain runs on this engine left, so that a table may be made in several goes."""
    read = json.loads(KEPT.read_text()).get(engine, []) if KEPT.exists() else []
    return {(node, family): Outcome(kind, says) for node, family, kind, says in read}


def keep(engine: str, found: dict[tuple[str, str], Outcome]) -> None:
    known = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    known[engine] = [[*key, each.kind, each.says] for key, each in {**kept(engine), **found}.items()]
    KEPT.parent.mkdir(parents=True, exist_ok=True)
    KEPT.write_text(json.dumps(known, indent=1))


def write_readme(text: str) -> None:
    whole = README.read_text(encoding="utf-8")
    before, rest = whole.split(START)
    _, after = rest.split(END)
    README.write_text(f"{before}{START}\n{text}\n{END}{after}", encoding="utf-8")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="make families", description=__doc__)
    parser.add_argument("--families", nargs="+", choices=list(FAMILIES), help="only these")
    parser.add_argument("--nodes", nargs="+", help="only these, by id")
    parser.add_argument("--weights", default=WEIGHTS[0], choices=WEIGHTS, help="the precision of the networks' weights")
    parser.add_argument("--beside", default="", choices=BESIDE, help="what stands beside a plain run")
    parser.add_argument("--kept", action="store_true", help="run nothing: the table of what earlier runs left")
    parser.add_argument("--write", action="store_true", help="put the table into README")
    args = parser.parse_args(argv)
    engine = engines.checkout() if os.environ.get("COMFYUI_PATH") else engines.embedded()
    nodes = [name if name.startswith("NullText_") else f"NullText_{name}" for name in args.nodes or CELLS]

    def told(node, family, outcome):
        print(f"  {family}: {node}: {outcome.kind}: {outcome.says}", flush=True)

    plain = args.weights == WEIGHTS[0] and not args.beside
    if args.kept:
        found = kept(engine.title)
    else:
        with tempfile.TemporaryDirectory(prefix="nulltext-") as folder:
            tree = Path(folder)
            plant_stand_ins(tree)
            with engines.running(engine, tree) as server:
                options = {"weights": args.weights, "beside": args.beside}
                found = run_cells(server, args.families, nodes, told, **options)
                OUTPUT.mkdir(parents=True, exist_ok=True)
                (OUTPUT / "families.log").write_text(server.tail(1_000_000))
        if plain:
            keep(engine.title, found)
    order = [(node, family) for family in FAMILIES for node in nodes]
    found = {key: found[key] for key in order if key in found}
    names = list(dict.fromkeys(family for _, family in found))
    nodes = [node for node in nodes if any((node, family) in found for family in names)]
    rows = [
        [title(node), *(MARKS[found[node, family].kind] for family in names), summary([found[node, f] for f in names])]
        for node in nodes
    ]
    print(table(["node", *names, "what was checked"], rows))
    for (node, family), outcome in found.items():
        if outcome.kind != WORKS:
            print(f"{MARKS[outcome.kind]} {title(node)} on {family}: {outcome.says}")
    if args.write:
        write_readme(markdown(found, engine.title.removesuffix(" from COMFYUI_PATH")))
    told_figures = figures(found)
    print(json.dumps(told_figures))
    return int(bool(told_figures["fails"] or told_figures["law_failures"]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
