"""make publish: makes every file that is generated, from the node classes and from workflows/api/*.api.json.

    python tools publish [NAME ...] [--pictures missing|all|none]

    workflows/<name>.json                      the workflow as the page opens it (NAME: only these)
    workflows/<name>.jpg                       its tile, before and after, from a real run, where there is none yet
    web/docs/pictures/<name>.webp              source and results of that run, with the workflow in the file
    subgraphs/<heading>.json                   the part of a workflow that is a blueprint of the page's node library
    docs/gallery.md                            all of them, by what one comes for
    web/docs/<NodeId>.md                       the tables of inputs and outputs, between two comments
    locales/<language>/nodeDefs.json           the search words that end each description

It lists what no other language says yet; the page shows the class's own text there.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from ..batch import engines
from . import blueprint, gallery, help_pages, inputs, litegraph, locales, notes, pictures, run, workflows


def page_text(name: str, infos: dict[str, Any]) -> str:
    """What workflows/<name>.json holds: the API file as the page opens it, with the widget order that a running engine
    tells (its /object_info). ValueError if it would not queue exactly what the API file says."""
    workflow = workflows.load(name)
    graph = litegraph.to_ui(workflow, infos, notes.note(name, workflow))
    if litegraph.to_api(graph, infos) != litegraph.filled(workflow, infos):
        raise ValueError(f"{name}: the graph would not queue what the API file says.")
    return json.dumps(graph, indent=1, ensure_ascii=False) + "\n"


def page_workflows(chosen: list[str], which: str) -> list[str]:
    """Write the page's form of these workflows, and their pictures ("missing", "all" or "none" of them), with a running
    engine. What failed, in one line each; a picture that fails its judge is not written."""
    failed = []
    with engines.running(engines.embedded()) as server:
        infos = server.client.object_info()
        for name in chosen:
            try:
                path = workflows.FOLDER / f"{name}.json"
                path.write_text(page_text(name, infos), encoding="utf-8")
                print(path.relative_to(workflows.FOLDER.parent), flush=True)
                if name in blueprint.names():
                    blueprint.FOLDER.mkdir(exist_ok=True)
                    blueprint.path(name).write_text(blueprint.text(name, infos), encoding="utf-8")
                drawn = pictures.strip_path(name).exists() and pictures.tile_path(name).exists()
                if which == "all" or (which == "missing" and not drawn):
                    flow = workflows.load(name)
                    flow = flow if workflows.runs_here(name) else workflows.on_demo(flow)
                    result = run.queue(server.client, name, flow, infos)
                    pictures.save(name, flow, result, json.loads(path.read_text(encoding="utf-8")))
                elif drawn:
                    pictures.renew(name)
            except (ValueError, RuntimeError, FileNotFoundError) as error:
                failed.append(f"{name}: {error}")
    return failed


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="make publish", description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="workflows to make for the page (default: all)")
    parser.add_argument("--pictures", choices=("missing", "all", "none"), default="missing", help="thumbnails to make")
    options = parser.parse_args(arguments)
    inputs.write()
    failed = page_workflows(options.names or workflows.names(), options.pictures)
    classes = locales.classes()
    for path, text in {**help_pages.texts(classes), **locales.texts(classes), gallery.PAGE: gallery.text()}.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(path.relative_to(workflows.FOLDER.parent), flush=True)
    for path in locales.FILES:
        said = locales.missing(path, classes)
        print(f"{path.parent.name}: {len(said)} texts are shown in English", *said, sep="\n  ")
    print("".join(f"FAILED: {line}\n" for line in failed), end="", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
