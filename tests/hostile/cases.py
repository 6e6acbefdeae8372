"""The attacks: each is made from a seed and its number alone, so that a number replays it."""

from __future__ import annotations

import copy
import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nulltext.tests.hostile import wires
from nulltext.tests.workflows import LIMITS, short
from nulltext.tools import workflows

NAN, INF = float("nan"), float("inf")
MARK = "nulltext_escape"  #: in every file name that tries to leave its folder
NUMBERS = (NAN, INF, -INF, -1, 0, 1e308, -1e308, 5e-324, 2**31, 2**63, 2**64, 10**30, 0.5, "", "x", "1", "nan", None)
NUMBERS += (True, {}, "1e999")
TEXTS = ("", " ", "\0", "\ud800", "a\0b", ":", ",", "::::", "red:", "red: nan", "red: inf", "red: 1e999", "(" * 500)
TEXTS += (
    "word " * 10_000,
    "x" * 150_000,
    "\n" * 1000,
    "'\"\\",
    "{a|b",
    "<lora:x:1>",
    "embedding:../x",
    "0.5-0.2",
    "9@9",
)
TEXTS += ("-1", "1,2,3", "\u202e\u0301" * 50, "ünïcödé 猫 🐈", "%s%n{0}", "<script>alert(1)</script>", "1e5", 7, None)
NAMES = (
    "../" + MARK,
    "/tmp/" + MARK,
    "..\\" + MARK,
    "a/../../" + MARK,
    "C:/" + MARK,
    "x" * 300,
    "a/" * 2000 + "b",
    ".",
)
NAMES += (
    "..",
    "/",
    "\0",
    "a\0b",
    "con",
    "./" + MARK,
    "~/" + MARK,
    "file:///tmp/" + MARK,
    "",
    " ",
    "\ud800",
    "%2e%2e/" + MARK,
)
NAMES += ("\\\\host\\share\\" + MARK, "nulltext", "models", "a\nb", ".hidden")
WORDS = ("", "none", "x" * 1000, 0, -1, NAN, None, "\0", "normal", {})
FILE_WIDGETS = {"name", "file_name", "file", "folder", "image"}
#: a run of these would only be long: their upper ends are left alone
LONG = {"steps", "count", "batch", "size", "width", "height", "vectors", "samples", "particles", "cutouts", "average"}
LONG |= {*LIMITS, "accumulate", "unseen_steps", "plain_steps", "unseen_passes", "pictures", "levels", "grow"}
INTERRUPTED = (
    "null_text",
    "prompt_to_prompt",
    "repaint",
    "clip_guidance",
    "disturbance",
    "direct_edit",
    "ilvr",
    "sdedit",
)


@dataclass
class Case:
    """kind: widget, wire, drop, route or interrupt. graph: a workflow in API form; query: of a route."""

    number: int
    kind: str
    told: str
    graph: dict[str, Any] = field(default_factory=dict)
    route: str = ""
    query: dict[str, str] = field(default_factory=dict)
    moments: tuple[float, ...] = ()  #: when it is interrupted, as shares of the run


def _ours(graph, infos):
    return [key for key, node in graph.items() if node["class_type"].startswith("NullText_")]


def _flow(rng):
    name = rng.choice([n for n in workflows.names() if workflows.runs_here(n)])
    return name, short(workflows.load(name), rng.choice((2, 3)))


def probed(graph: dict, infos: dict) -> dict:
    """The graph with a probe on every output of ours that a probe can look at."""
    out = copy.deepcopy(graph)
    for key in _ours(graph, infos):
        for slot, kind in enumerate(infos[graph[key]["class_type"]]["output"]):
            if kind in wires.PROBED:
                out[f"{key}p{slot}"] = {"class_type": f"HostileProbe{kind}", "inputs": {"value": [key, slot]}}
    return out


def _spec(infos, node, name):
    groups = infos[node["class_type"]]["input"]
    return next((g[name] for g in (groups.get("required", {}), groups.get("optional", {})) if name in g), None)


def _ends(rng, name, options):
    if name in LONG:
        return options.get("min", 0)
    return rng.choice((options.get("min", 0), options.get("max", 1)))


def _widget(rng, number, infos):
    flow, graph = _flow(rng)
    key = rng.choice(_ours(graph, infos))
    node = graph[key]
    groups = infos[node["class_type"]]["input"]
    specs = {n: s for g in ("required", "optional") for n, s in groups.get(g, {}).items()}
    known = [n for n, s in specs.items() if isinstance(s[0], list) or s[0] in ("INT", "FLOAT", "STRING", "BOOLEAN")]
    if not known:
        return _wire(rng, number, infos)
    told = []
    for name in rng.sample(known, min(len(known), rng.choice((1, 1, 1, 2, 4)))):
        kind, options = specs[name][0], (specs[name][1] if len(specs[name]) > 1 else {})
        if kind in ("INT", "FLOAT"):
            value = rng.choice(NUMBERS) if rng.random() < 0.6 else _ends(rng, name, options)
        elif kind == "STRING":
            value = rng.choice(NAMES if name in FILE_WIDGETS else TEXTS)
        else:
            value = rng.choice([*WORDS, *(kind if isinstance(kind, list) else (True, False))])
        node["inputs"][name] = value
        told.append(f"{name}={repr(value)[:40]}")
    return Case(number, "widget", f"{flow} {node['class_type']}: {', '.join(told)}", graph)


def _wire(rng, number, infos):
    flow, graph = _flow(rng)
    spots = []
    for key in _ours(graph, infos):
        for name, value in graph[key]["inputs"].items():
            spec = _spec(infos, graph[key], name)
            if spec and workflows.is_link(value, graph) and spec[0] in wires.KINDS:
                spots.append((key, name, spec[0]))
    if not spots:
        return _route(rng, number)
    key, name, kind = rng.choice(spots)
    way = rng.choice(wires.ways(kind))
    graph["bad"] = {"class_type": f"Hostile{kind}", "inputs": {"like": graph[key]["inputs"][name], "way": way}}
    graph[key]["inputs"][name] = ["bad", 0]
    return Case(number, "wire", f"{flow} {graph[key]['class_type']}.{name}: {way}", graph)


def _behind(graph, key) -> set[str]:
    """The node and all that get something of it."""
    found = {key}
    while True:
        more = {
            k
            for k, n in graph.items()
            if any(isinstance(v, list) and v and v[0] in found for v in n["inputs"].values())
        }
        if more <= found:
            return found
        found |= more


def _drop(rng, number, infos):
    """Another wire of the same kind, or none."""
    flow, graph = _flow(rng)
    key = rng.choice(_ours(graph, infos))
    inputs = graph[key]["inputs"]
    links = [n for n, v in inputs.items() if workflows.is_link(v, graph)]
    if not links:
        return _widget(rng, number, infos)
    name = rng.choice(links)
    kind = (_spec(infos, graph[key], name) or ("?",))[0]
    after = _behind(graph, key)  # a circle would be the engine's own trouble
    others = [
        [other, slot]
        for other, node in graph.items()
        if other not in after
        for slot, out in enumerate(infos[node["class_type"]]["output"])
        if out == kind and [other, slot] != inputs[name]
    ]
    if others and rng.random() < 0.6:
        inputs[name] = rng.choice(others)
        return Case(number, "drop", f"{flow} {graph[key]['class_type']}.{name} = another {kind}", graph)
    del inputs[name]
    return Case(number, "drop", f"{flow} {graph[key]['class_type']} without {name}", graph)


ROUTES = {
    "schedule": (
        *("kind", "schedule", "levels", "jump", "resamples", "low", "high", "noise", "mode", "particles", "steps"),
        *("scheduler", "ckpt", "cfg", "start_percent", "end_percent", "denoise", "steps_above", "steps_below"),
    ),
    "words": ("text",),
}


def _route(rng, number):
    route = rng.choice(("schedule", "schedule", "schedule", "words"))
    base = {"kind": rng.choice(("repaint", "disturbance"))} if route == "schedule" else {}
    if rng.random() < 0.5:
        base |= {"schedule": "custom", "levels": "50", "noise": "", "mode": "resampling (RePaint)"}
    values = (
        "nan",
        "inf",
        "-1",
        "0",
        "1",
        "1000",
        "999999",
        "1e9",
        "1e400",
        "",
        "x",
        "\0",
        "custom",
        "karras",
        "x" * 5000,
        "10",
    )
    query = base | {
        name: rng.choice(values) for name in rng.sample(ROUTES[route], min(len(ROUTES[route]), rng.choice((1, 2, 5))))
    }
    return Case(number, "route", f"{route} {json.dumps(query)[:200]}", route=route, query=query)


def _interrupt(rng, number):
    name = rng.choice(sorted(INTERRUPTED))
    graph, moments = short(workflows.load(name), 6), (rng.uniform(0.02, 0.95), rng.uniform(0.02, 0.95))
    return Case(number, "interrupt", name, graph, moments=moments)


def make(seed: int, number: int, infos: dict) -> Case:
    """The case of that number."""
    rng = random.Random(f"{seed}:{number}")
    kind = rng.choices(("widget", "wire", "drop", "route", "interrupt"), (40, 30, 8, 12, 10))[0]
    if kind == "route":
        return _route(rng, number)
    if kind == "interrupt":
        return _interrupt(rng, number)
    return {"widget": _widget, "wire": _wire, "drop": _drop}[kind](rng, number, infos)


def source() -> Path:
    """The file of the hostile nodes."""
    return Path(wires.__file__)
