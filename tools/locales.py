"""The page's texts in other languages: locales/<language>/nodeDefs.json, written by hand.

English has no file: where a text is missing, the page shows the class's own. Only the search words at the end of each
description are put there by `make publish`, because the old engine finds a node by its description alone. Braces, bars
and at-signs are quoted ({'@'}): the page reads these texts as message formats.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from . import help_pages

FILES = sorted((Path(__file__).resolve().parent.parent / "locales").glob("*/nodeDefs.json"))
SEARCH = {"de": "Suche"}  # what stands before the search words


def quoted(text: str) -> str:
    """The text as a message format that says just this."""
    return re.sub(r"[{}@|]", lambda sign: "{'" + sign[0] + "'}", text)


def classes() -> dict:
    """{node id: class} of every node of the pack."""
    import nulltext
    from nulltext.engine import comfy

    comfy.get("cli_args").args.cpu = True
    return dict(sorted(nulltext.NODE_CLASS_MAPPINGS.items()))


def missing(file: Path, classes: dict) -> list[str]:
    """What a language doesn't say yet: "<node id>" for a whole node, "<node id>.inputs.<name>" for one text."""
    said, found = json.loads(file.read_text(encoding="utf-8")), []
    for key, node in classes.items():
        if key not in said:
            found.append(key)
            continue
        found += [f"{key}.{part}" for part in ("display_name", "description") if not said[key].get(part)]
        outputs = [str(i) for i in range(len(help_pages.outputs(node)))]
        for part, names in (("inputs", help_pages.inputs(node)), ("outputs", outputs)):
            texts = said[key].get(part, {})
            found += [f"{key}.{part}.{name}" for name in names if not texts.get(name, {}).get("tooltip")]
    return found


def texts(classes: dict) -> dict[Path, str]:
    """{file: its text}: every description ends in its class's search words."""
    found = {}
    for file in FILES:
        definitions, word = json.loads(file.read_text(encoding="utf-8")), SEARCH.get(file.parent.name, "Search")
        for key, node in definitions.items():
            if key in classes and node.get("description"):
                body = node["description"].partition(f" {word}: ")[0]
                node["description"] = f"{body} {word}: {quoted(', '.join(classes[key].SEARCH_ALIASES))}."
        found[file] = json.dumps(definitions, indent=1, ensure_ascii=False) + "\n"
    return found
