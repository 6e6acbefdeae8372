"""Memory over many prompts on one server: the shipped workflows in short form, drawn at random; beside them as many
prompts of core's nodes alone, which show what the engine itself keeps."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator
from itertools import islice

from nulltext.tests.hostile.arena import Arena, fresh
from nulltext.tests.server.graph import Graph
from nulltext.tests.workflows import short
from nulltext.tools import workflows

CLEARED = 10  #: the engine keeps every prompt it ran: it is told to forget them after so many
SECONDS = 240.0


def drift(memory: list[float]) -> float:
    """How much more the last fifth holds than the first, the first third left out as the time to warm up."""
    steady = memory[len(memory) // 3 :]
    size = max(1, len(steady) // 5)
    return round(sum(steady[-size:]) / sum(steady[:size]) - 1, 4) if steady else 0.0


def seeded(graph: dict, rng: random.Random) -> dict:
    """The graph itself, with seeds of its own."""
    for node in graph.values():
        for name in ("seed", "noise_seed", "training_seed"):
            if isinstance(node["inputs"].get(name), int):
                node["inputs"][name] = rng.randrange(2**31)
    return graph


def ours(rng: random.Random, infos: dict) -> Iterator[tuple[str, dict]]:
    """Names and graphs of the workflows that run here."""
    names = [name for name in workflows.names() if workflows.runs_here(name)]
    while True:
        name = rng.choice(names)
        yield name, seeded(short(workflows.load(name), rng.choice((2, 3))), rng)


def core(rng: random.Random, infos: dict) -> Iterator[tuple[str, dict]]:
    """Core's own sampling on the demo checkpoint: one to three pictures of three sizes."""
    while True:
        graph, side = Graph(infos), rng.choice((64, 128, 192))
        ends = {"positive": graph.prompt(rng.choice(("a red circle", "a blue square"))), "negative": graph.prompt()}
        for _ in range(rng.choice((1, 2, 3))):
            latent = graph.empty(side, side, rng.choice((1, 2)))
            graph.picture_of(
                graph.draw(**ends, latent_image=latent, steps=rng.choice((2, 4, 8)), seed=rng.randrange(2**31))
            )
        yield "core", dict(graph)


def census(ring: Arena) -> dict[str, float]:
    """What lives in the server: tensors, their megabytes, networks; what malloc has given out and what it keeps."""
    graph = fresh({"1": {"class_type": "HostileCensus", "inputs": {}}})
    (found,) = ring.client.run(graph, timeout=SECONDS).check().outputs.values()
    return found["census"][0]


def _say(line: str) -> None:
    print(line, flush=True)


def run(
    ring: Arena, count: int, make=ours, seed: int = 0, minutes: float = math.inf, every: int = 25, tell=_say
) -> dict:
    """{"prompts", "failed", "rss_drift", "first_mb", "last_mb", "census": {how many prompts: `census`}}, a census after
    every so many. No prompt begins after so many minutes."""
    memory, failed, counts, deadline = [], [], {}, time.monotonic() + 60 * minutes
    graphs = make(random.Random(f"soak:{seed}"), ring.infos)
    for number, (name, graph) in enumerate(islice(graphs, count)):
        if time.monotonic() > deadline:
            break
        result = ring.client.run(fresh(graph), timeout=SECONDS)
        if not result.ok:
            failed.append(f"{number} {name}: {result.error or 'interrupted'}")
        if number % CLEARED == CLEARED - 1:
            ring.client.post("/history", {"clear": True})
        memory.append(ring.rss() / 2**20)
        if number % every == every - 1:
            counts[number + 1] = census(ring)
            tell(f"{number + 1:4} prompts  {memory[-1]:7.1f} MB  {drift(memory):+.4f}  {counts[number + 1]}")
    steady = memory[len(memory) // 3 :]
    size = max(1, len(steady) // 5)
    mean = lambda values: round(sum(values) / len(values), 1)
    return {
        "prompts": len(memory),
        "failed": failed,
        "rss_drift": drift(memory),
        "first_mb": mean(steady[:size]),
        "last_mb": mean(steady[-size:]),
        "census": counts,
    }
