"""Several clients at once: prompts queued, cancelled and put in front at random; each result comes once, and equals the
run alone."""

from __future__ import annotations

import random
import threading
import time

from nulltext.batch.client import Client, Result
from nulltext.tests.hostile.arena import Arena, Attacker, fresh, pixels
from nulltext.tests.workflows import short
from nulltext.tools import workflows


def graph(seed: int) -> dict:
    """A short run of ours whose picture the seed tells."""
    flow = short(workflows.load("sdedit"), 2)
    for node in flow.values():
        if "seed" in node["inputs"]:
            node["inputs"]["seed"] = seed
    return flow


def _queue(client: Client, workflow: dict, front: bool) -> str:
    answer = client.post("/prompt", {"prompt": workflow, "client_id": client.id, "front": front})
    return answer.json()["prompt_id"]


def run(
    ring: Arena, clients: int = 4, prompts: int = 50, pictures: int = 6, seed: int = 0, seconds: float = 1800
) -> dict:
    """{"load_prompts", "load_cancelled", "load_unfinished", "load_lost", "load_wrong"}: unfinished are those that still
    wait when so many seconds are over; lost are others that were not cancelled and left no result. pictures: how many
    different ones."""
    alone = {n: pixels(ring.client.run(fresh(graph(n)), timeout=240).check()) for n in range(pictures)}
    asked: dict[str, int] = {}
    cancelled: set[str] = set()
    lock = threading.Lock()

    def one(number: int) -> None:
        rng, client = random.Random(f"{seed}:{number}"), Attacker(ring.server.address, ring.server.alive)
        for _ in range(prompts):
            n = rng.randrange(pictures)
            key = _queue(client, fresh(graph(n)), rng.random() < 0.3)
            with lock:
                asked[key] = n
            if rng.random() < 0.15:
                with lock:
                    victim = rng.choice(sorted(set(asked) - cancelled))
                    cancelled.add(victim)
                client.post("/queue", {"delete": [victim]})  # one that runs or has run is left alone
            time.sleep(rng.uniform(0, 0.05))

    threads = [threading.Thread(target=one, args=(n,)) for n in range(clients)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    deadline, state = time.monotonic() + seconds, {}
    while time.monotonic() < deadline and ring.server.alive():
        state = ring.client.get("/queue").json()
        if not state["queue_running"] and not state["queue_pending"]:
            break
        time.sleep(0.3)
    waiting = {item[1] for part in state.values() for item in part}
    lost = wrong = 0
    for key, n in asked.items():
        entry = ring.client.get(f"/history/{key}").json().get(key)
        if entry is None:
            lost += key not in cancelled | waiting
            continue
        result = Result()
        ring.client._read(entry, result)
        wrong += not result.ok or pixels(result) != alone[n]
    found = {"load_prompts": len(asked), "load_cancelled": len(cancelled), "load_unfinished": len(waiting)}
    return {**found, "load_lost": lost, "load_wrong": wrong}
