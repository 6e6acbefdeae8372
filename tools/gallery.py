"""docs/gallery.md: the shipped workflows by what one comes for, each with its picture and its settings."""

from __future__ import annotations

from . import notes, pictures, workflows

ROOT = workflows.FOLDER.parent
PAGE = ROOT / "docs" / "gallery.md"
INTRODUCTION = """# Gallery

Every workflow of the pack, by what one comes for. Drop a picture on ComfyUI's page and its workflow opens; you also
find them in `workflows/` and in the page's template browser. [Which method when](methods.md) compares them.
"""


def settings(workflow: workflows.Workflow) -> list[tuple[str, list[tuple[str, str]]]]:
    """(node title, [(widget, value), ...]) of every prompt and of the pack's nodes."""
    found = []
    for _, node in workflows.by_id(workflow):
        ours = node["class_type"].startswith("NullText_")
        widgets = [
            (widget, str(value))
            for widget, value in node["inputs"].items()
            if not workflows.is_link(value, workflow) and (ours or widget == "text") and value != ""
        ]
        found += [(notes.title_on_screen(node), widgets)] if widgets else []
    return found


def section(name: str) -> str:
    """One workflow: its picture, which weights drew it, what the workflow says of itself, its settings."""
    flow = workflows.load(name)
    said = [node["_meta"]["note"] for node in flow.values() if node.get("_meta", {}).get("note")]
    heading, weights = workflows.title(name), workflows.drawn_by(name)
    under = next((node["_meta"]["under"] for node in flow.values() if node.get("_meta", {}).get("under")), "")
    rows = [
        f"- **{title}**: " + "; ".join(f"{widget} {_code(value)}" for widget, value in widgets)
        for title, widgets in settings(flow)
    ]
    return "\n".join(
        [
            f'<a id="{name}"></a>',
            f"### {heading}",
            "",
            f"![{heading}](../web/docs/pictures/{name}.webp)",
            "",
            f"*{' '.join(part for part in (under, weights) if part)}*",
            "",
            *said,
            "",
            f"<details><summary><code>workflows/{name}.json</code>: its settings</summary>",
            "",
            *rows,
            "",
            "</details>",
            "",
        ]
    )


def _code(value: str) -> str:
    return f"`{' '.join(value.split())}`"


def text() -> str:
    """The page."""
    parts = [INTRODUCTION]
    tasks = {
        task: [name for name in found if pictures.strip_path(name).exists()]
        for task, found in workflows.by_task().items()
    }
    parts.append(
        "\n".join(f"- [{task}](#{task.lower().replace(' ', '-')}): {len(found)}" for task, found in tasks.items())
    )
    for task, found in tasks.items():
        parts += [f"\n## {task}\n", *map(section, found)]
    return "\n".join(parts).rstrip() + "\n"
