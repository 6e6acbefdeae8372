"""The page's names and tooltips in files that can be translated: locales/en/nodeDefs.json, made from the node classes.

    python tools locales           writes the English file (in the interpreter that has ComfyUI)

The other languages are written by hand, in the same shape; what they leave out appears in English. Braces, bars and
at-signs are quoted, because the page reads these texts as message formats.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "locales"


def quoted(text: str) -> str:
    """The text as a message format that says just this."""
    return re.sub(r"[{}@|]", lambda sign: "{'" + sign[0] + "'}", text)


def definition(node) -> dict:
    """One node class: its display name, description, inputs by name and outputs by number."""
    inputs = {
        name: {"name": name, "tooltip": quoted(spec[1]["tooltip"])}
        for part, group in node.INPUT_TYPES().items()
        if part != "hidden"
        for name, spec in group.items()
    }
    names = getattr(node, "RETURN_NAMES", node.RETURN_TYPES)
    outputs = {
        str(i): {"name": name, "tooltip": quoted(tip)}
        for i, (name, tip) in enumerate(zip(names, getattr(node, "OUTPUT_TOOLTIPS", ()), strict=False))
    }
    found = {"display_name": quoted(node.TITLE), "description": quoted(node.DESCRIPTION), "inputs": inputs}
    return {**found, "outputs": outputs} if outputs else found


def english() -> dict:
    """{node id: definition} of every class."""
    import nulltext

    return {key: definition(node) for key, node in sorted(nulltext.NODE_CLASS_MAPPINGS.items())}


def text(definitions: dict) -> str:
    return json.dumps(definitions, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    from nulltext.engine import comfy

    comfy.get("cli_args").args.cpu = True
    file = FOLDER / "en" / "nodeDefs.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text(english()), encoding="utf-8")
    print(f"{file.relative_to(FOLDER.parent)}: {len(english())} nodes")


if __name__ == "__main__":
    main()
