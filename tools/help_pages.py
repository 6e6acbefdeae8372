"""The tables of inputs and outputs on the help pages, from the node classes; all else on a page is written by hand."""

from __future__ import annotations

import re
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "web" / "docs"
BEGIN, END = "<!-- made by `make publish` from the node's class: change it there -->", "<!-- to here -->"
_BLOCK = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _default(options: dict) -> str:
    value = options.get("default", "")
    value = {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value
    value = " / ".join(str(value).splitlines())
    return "" if value == "" else f" Default: {value}" + ("" if str(value).endswith(".") else ".")


def inputs(node) -> dict[str, tuple[str, dict, bool]]:
    """{name: (type or list of choices, options, whether it may stay open)} of a node class's visible inputs."""
    return {
        name: (spec[0], spec[1] if len(spec) > 1 else {}, part == "optional")
        for part, group in node.INPUT_TYPES().items()
        if part != "hidden"
        for name, spec in group.items()
    }


def outputs(node) -> list[tuple[str, str]]:
    """(name, tooltip) of a node class's outputs."""
    names = getattr(node, "RETURN_NAMES", node.RETURN_TYPES)
    return list(zip(names, getattr(node, "OUTPUT_TOOLTIPS", ()), strict=False))


def tables(node) -> str:
    """Both sections of a page, with their headings."""
    lines = ["## Inputs", "", "| input | type | meaning |", "|---|---|---|"]
    for name, (kind, options, optional) in inputs(node).items():
        kind = kind if isinstance(kind, str) else "choice"
        kind = "choice" if kind == "COMBO" else kind
        said = _cell(options.get("tooltip", "") + _default(options))
        lines.append(f"| `{name}`{' (optional)' if optional else ''} | {kind} | {said} |")
    if found := outputs(node):
        lines += ["", "## Outputs", "", "| output | meaning |", "|---|---|"]
        lines += [f"| {name} | {_cell(tooltip)} |" for name, tooltip in found]
    return "\n".join(lines)


def renewed(page: str, node) -> str:
    """A page's text with the node's tables; before its last section where it has none yet."""
    block = f"{BEGIN}\n\n{tables(node)}\n\n{END}"
    if BEGIN in page:
        return _BLOCK.sub(lambda _: block, page)
    body, heading, paper = page.rpartition("\n## ")
    return f"{body}\n{block}\n{heading}{paper}"


def texts(classes: dict) -> dict[Path, str]:
    """{page: its text} for each class that has a page."""
    pages = {FOLDER / f"{key}.md": node for key, node in classes.items()}
    return {path: renewed(path.read_text(encoding="utf-8"), node) for path, node in pages.items() if path.exists()}
