"""A workflow in API format as the graph that both pages of ComfyUI open, and back.

The page keeps a node's widgets as a positional list, in the order of the node's inputs, with extra places that only the
page knows: a control behind every seed, a button behind a picture to upload. `widgets` spells out that order from the
server's /object_info; `to_ui` and `to_api` are built on it. The 2024 page also keeps a place for a widget that is
forced to be an input; the modern page drops that place by itself when it reads such a file.
"""

from __future__ import annotations

from typing import Any

from . import layout, sizes
from .workflows import Workflow, is_link

WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
SEEDS = ("seed", "noise_seed")
#: widgets of core nodes that the engine of 2024 does not have yet and a newer one asks for, after those of both: a file
#: keeps their values, and the older engine reads past them
NEWER = {"UNETLoader": {"weight_dtype": (["default"], {})}}

#: where the page offers to fetch a checkpoint that is not there, by its name
DOWNLOADS = {
    "v1-5-pruned-emaonly-fp16.safetensors": {
        "name": "v1-5-pruned-emaonly-fp16.safetensors",
        "url": "https://huggingface.co/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/"
        "v1-5-pruned-emaonly-fp16.safetensors?download=true",
        "directory": "checkpoints",
    }
}

ZOOM = 0.8  # at which the page opens the graph: all of layout.WIDTH is seen, and text is drawn

Info = dict[str, Any]  # one node class of /object_info


def inputs_of(info: Info) -> dict[str, tuple[Any, dict]]:
    """{input name: (type, options)} in the page's order: required, then optional, then what a newer engine asks for."""
    found = {}
    for part in ("required", "optional"):
        for name, spec in (info["input"].get(part) or {}).items():
            found[name] = (spec[0], spec[1] if len(spec) > 1 and isinstance(spec[1], dict) else {})
    return found | {name: spec for name, spec in NEWER.get(info["name"], {}).items() if name not in found}


def is_widget(kind: Any) -> bool:
    """Whether an input of this type is typed in rather than wired."""
    return isinstance(kind, list) or kind in WIDGETS


def widgets(info: Info) -> list[tuple[str, str | None]]:
    """The places of `widgets_values`: (place, input name), the name None where only the page knows the place."""
    places: list[tuple[str, str | None]] = []
    upload = False
    for name, (kind, options) in inputs_of(info).items():
        if not is_widget(kind):
            continue
        places.append((name, name))
        control = options.get("control_after_generate")
        if control or (kind == "INT" and name in SEEDS):
            places.append(("control_after_generate", None))
            if kind != "INT":
                places.append(("control_filter_list", None))
        upload = upload or bool(options.get("image_upload"))
    return [*places, ("upload", None)] if upload else places


PAGE_ONLY = {"control_after_generate": "fixed", "control_filter_list": "", "upload": "image"}


def default(kind: Any, options: dict) -> Any:
    """What the page shows in a widget that nobody touched."""
    if "default" in options:
        return options["default"]
    if isinstance(kind, list):
        return kind[0] if kind else ""
    if kind == "COMBO":
        return (options.get("options") or [""])[0]
    return {"INT": options.get("min", 0), "FLOAT": options.get("min", 0), "BOOLEAN": False}.get(kind, "")


def filled(workflow: Workflow, infos: dict[str, Info]) -> Workflow:
    """The workflow as the page would queue it: widgets that the file leaves out have their defaults."""
    whole: Workflow = {}
    for key, node in workflow.items():
        known = inputs_of(infos[node["class_type"]])
        unknown = set(node["inputs"]) - set(known)
        if unknown:
            raise ValueError(f"Node {key} ({node['class_type']}) has no input named {', '.join(sorted(unknown))}.")
        values = {
            name: node["inputs"].get(name, default(kind, options))
            for name, (kind, options) in known.items()
            if name in node["inputs"] or is_widget(kind) and not options.get("forceInput")
        }
        whole[key] = {"class_type": node["class_type"], "inputs": values}
    return whole


def to_ui(workflow: Workflow, infos: dict[str, Info], note: str) -> dict[str, Any]:
    """The page's graph of a workflow, in numbered groups, with a note. ValueError for what is not known."""
    for key, node in workflow.items():
        if not key.isdigit():
            raise ValueError(f"Node id {key!r}: the page needs whole numbers.")
        if node["class_type"] not in infos:
            raise ValueError(f"Node {key}: the engine does not know {node['class_type']}.")
    whole = filled(workflow, infos)
    nodes = {
        key: _node(key, node, infos[node["class_type"]], workflow[key].get("_meta", {})) for key, node in whole.items()
    }
    links: list[list[Any]] = []
    for key, node in whole.items():
        for slot, entry in enumerate(nodes[key]["inputs"]):
            value = node["inputs"].get(entry["name"])
            if not is_link(value, whole):
                continue
            source, output = nodes[str(value[0])]["outputs"], int(value[1])
            number = len(links) + 1
            links.append([number, int(value[0]), output, int(key), slot, entry["type"]])
            entry["link"] = number
            source[output]["links"].append(number)
    order = layout.run_order(whole)
    for position, key in enumerate(order):
        nodes[key]["order"] = position
    listed = [nodes[key] for key in sorted(nodes, key=int)]
    listed.append(_note(max(map(int, nodes)) + 1, note, len(order)))
    groups = layout.place(whole, nodes, infos, listed[-1])
    return {
        "last_node_id": listed[-1]["id"],
        "last_link_id": len(links),
        "nodes": listed,
        "links": links,
        "groups": groups,
        "config": {},
        "extra": {"ds": {"scale": ZOOM, "offset": [90, 60]}},
        "version": 0.4,
    }


def to_api(graph: dict[str, Any], infos: dict[str, Info]) -> Workflow:
    """What the page would queue for this graph (its own notes left out)."""
    ends = {link[0]: [str(link[1]), link[2]] for link in graph["links"]}
    workflow: Workflow = {}
    for node in graph["nodes"]:
        if node["type"] == "Note":
            continue
        places = widgets(infos[node["type"]])
        values = node.get("widgets_values") or []
        if len(values) != len(places):
            raise ValueError(
                f"Node {node['id']} ({node['type']}) keeps {len(values)} widget values, the page reads {len(places)}."
            )
        known = inputs_of(infos[node["type"]])
        inputs = {
            name: value
            for (_, name), value in zip(places, values, strict=True)
            if name is not None and not known[name][1].get("forceInput")
        }
        inputs.update({entry["name"]: ends[entry["link"]] for entry in node.get("inputs", ()) if entry.get("link")})
        workflow[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return workflow


def _node(key: str, node: dict, info: Info, meta: dict) -> dict[str, Any]:
    known = inputs_of(info)
    wired = [name for name, (kind, options) in known.items() if not is_widget(kind) or options.get("forceInput")]
    # a widget that is wired instead becomes an input, at the end
    converted = [name for name, value in node["inputs"].items() if name not in wired and isinstance(value, list)]
    entries = []
    for name in wired + converted:
        kind, _ = known[name]
        entry: dict[str, Any] = {"name": name, "type": "COMBO" if isinstance(kind, list) else kind, "link": None}
        if is_widget(kind):
            entry["widget"] = {"name": name}
        entries.append(entry)
    values = []
    places = widgets(info)
    for place, name in places:
        value = PAGE_ONLY[place] if name is None else node["inputs"].get(name, default(*known[name]))
        values.append(default(*known[name]) if name is not None and isinstance(value, list) else value)
    names = info.get("output_name") or info["output"]
    outputs = [
        {"name": name, "type": "COMBO" if isinstance(kind, list) else kind, "links": [], "slot_index": slot}
        for slot, (kind, name) in enumerate(zip(info["output"], names, strict=True))
    ]
    pack = "nulltext" if node["class_type"].startswith("NullText_") else "comfy-core"
    result = {
        "id": int(key),
        "type": node["class_type"],
        "pos": [0, 0],
        "size": sizes.size(info, places, len(entries), len(outputs)),
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": entries,
        "outputs": outputs,
        "properties": {"Node name for S&R": node["class_type"], "cnr_id": pack},
        "widgets_values": values,
    }
    if models := DOWNLOADS.get(str(node["inputs"].get("ckpt_name"))):
        result["properties"]["models"] = [models]
    title = meta.get("title")
    if title and title not in (info.get("display_name"), node["class_type"]):
        result["title"] = title
    return result


def _note(number: int, text: str, order: int) -> dict[str, Any]:
    return {
        "id": number,
        "type": "Note",
        "pos": [0, 0],
        "size": sizes.note_size(text),
        "flags": {},
        "order": order,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "title": "Read me",
        "properties": {"text": ""},
        "widgets_values": [text],
        "color": "#432",
        "bgcolor": "#653",
    }
