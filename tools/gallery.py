"""docs/gallery.html, a static page: each workflow's thumbnail (source, then the last results of a real run) with its
settings. The thumbnails are copied to web/docs/pictures/, where the help pages show them."""

from __future__ import annotations

import html
import shutil

from . import workflows

ROOT = workflows.FOLDER.parent
PICTURES = ROOT / "web" / "docs" / "pictures"
PAGE = ROOT / "docs" / "gallery.html"
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:1000px;margin:2em auto;padding:0 1em;color:#222}"
    "section{display:grid;grid-template-columns:minmax(0,3fr) minmax(0,2fr);gap:1.2em;margin:2.2em 0;"
    "border-top:1px solid #ddd;padding-top:1em}section h2{grid-column:1/-1;margin:0;font-size:1.15em}"
    "img{width:100%;border:1px solid #ddd}.settings{font-size:13px;overflow-wrap:anywhere}"
    ".weights{font-size:13px;color:#666}"
    "p{white-space:pre-line;margin:.4em 0}"
)


def settings(workflow: workflows.Workflow) -> list[tuple[str, list[tuple[str, str]]]]:
    """(node title, [(widget, value), ...]) of every prompt and of the pack's nodes."""
    found = []
    for _, node in sorted(workflow.items(), key=lambda item: int(item[0])):
        ours = node["class_type"].startswith("NullText_")
        title = node.get("_meta", {}).get("title") or node["class_type"].removeprefix("NullText_")
        widgets = [
            (name, str(value))
            for name, value in node["inputs"].items()
            if not workflows.is_link(value, workflow) and (ours or name == "text") and value != ""
        ]
        found += [(title, widgets)] if widgets else []
    return found


def section(name: str, picture: str) -> str:
    """One technique: its picture, what the workflow says of itself, its settings."""
    flow = workflows.load(name)
    said = [node["_meta"]["note"] for node in flow.values() if node.get("_meta", {}).get("note")]
    rows = "".join(
        f"<p><b>{html.escape(title)}</b>: "
        + html.escape("; ".join(f"{widget} {value}" for widget, value in widgets))
        + "</p>"
        for title, widgets in settings(flow)
    )
    heading, weights = html.escape(workflows.title(name)), html.escape(workflows.drawn_by(name))
    return (
        f'<section id="{name}"><h2>{heading}</h2><div><img src="{picture}" alt="{heading}: source and results. '
        f'{weights}"><p class="weights">{weights}</p><p>{html.escape(chr(10).join(said))}</p></div>'
        f'<div class="settings">{rows}</div></section>'
    )


def copy_pictures() -> None:
    """Thumbnails for the help pages, which can show only what lies beside them."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    for name in shown():
        shutil.copyfile(workflows.FOLDER / f"{name}.jpg", PICTURES / f"{name}.jpg")


def shown() -> list[str]:
    """The workflows that have a thumbnail."""
    return [name for name in workflows.names() if (workflows.FOLDER / f"{name}.jpg").exists()]


def text() -> str:
    """The page."""
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>ComfyUI-NullText: gallery</title>'
        f"<style>{STYLE}</style><h1>ComfyUI-NullText: every technique</h1>"
        "<p>Made by <code>make publish</code> from the shipped workflows. Every picture here was "
        "drawn by the small demo model that comes with the pack, those of the workflows for Stable "
        "Diffusion too: no real checkpoint was at hand.</p>"
        + "\n".join(section(name, f"../web/docs/pictures/{name}.jpg") for name in shown())
        + "</html>\n"
    )
