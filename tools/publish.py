"""make publish: makes every file that is generated, from the node classes and from workflows/api/*.api.json.

    python tools publish [NAME ...] [--pictures missing|all|none]

    workflows/<name>.json                      the workflow as the page opens it (NAME: only these)
    workflows/<name>.jpg                       its thumbnail, from a real run, where there is none yet
    web/docs/pictures/, docs/gallery.html      the thumbnails again, for help pages and gallery
    web/docs/<NodeId>.md                       the tables of inputs and outputs, between two comments
    locales/<language>/nodeDefs.json           the search words that end each description

It lists what no other language says yet; the page shows the class's own text there.
"""

from __future__ import annotations

import argparse
import sys

from ..batch import engines
from . import gallery, help_pages, inputs, locales, run, sheet, workflows


def page_workflows(chosen: list[str], pictures: str) -> list[str]:
    """Write the page's form of these workflows, and their thumbnails ("missing", "all" or "none" of them), with a
    running engine. What failed, in one line each."""
    failed = []
    with engines.running(engines.embedded()) as server:
        infos = server.client.object_info()
        for name in chosen:
            try:
                path = workflows.FOLDER / f"{name}.json"
                path.write_text(workflows.page_text(name, infos), encoding="utf-8")
                print(path.relative_to(workflows.FOLDER.parent), flush=True)
                thumbnail = path.with_suffix(".jpg")
                if pictures == "all" or (pictures == "missing" and not thumbnail.exists()):
                    flow = (
                        workflows.load(name) if workflows.runs_here(name) else workflows.on_demo(workflows.load(name))
                    )
                    result = run.queue(server.client, name, flow, infos)
                    shown = [sheet.tiled(result.pictures[key]) for key in sorted(result.pictures, key=int)]
                    sheet.thumbnail(workflows.source_pictures(flow), shown).save(thumbnail, quality=88)
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
    gallery.copy_pictures()
    for path in locales.FILES:
        said = locales.missing(path, classes)
        print(f"{path.parent.name}: {len(said)} texts are shown in English", *said, sep="\n  ")
    print("".join(f"FAILED: {line}\n" for line in failed), end="", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
