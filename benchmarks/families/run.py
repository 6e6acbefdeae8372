"""Runs the cells on a server and says of each: works and the law, refused in one sentence, or fails."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file

from ...batch.client import Result
from ...batch.engines import Server
from .cells import CELLS
from .graphs import FamilyGraph, LawBroken, Left

STAND_INS = Path(__file__).with_name("stand_ins")
WORKS, REFUSED, FAILS, LAW = "works", "refused", "fails", "law"
SIZES = {"PixArt": 48}  #: latent cells a side; the engine's own PixArt divides by zero at 32 and below
SIZE = 16


@dataclass(frozen=True)
class Outcome:
    """What became of a cell, and the law that held, the refusal or the error."""

    kind: str
    says: str


def plant_stand_ins(tree: Path) -> None:
    """Put the families' nodes into a server's tree, before it starts."""
    folder = tree / "custom_nodes" / "nulltext_families"
    shutil.copytree(STAND_INS, folder, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)


def families(infos: dict) -> list[str]:
    """The families that a server's engine knows; infos: its /object_info."""
    return list(infos["Families_Model"]["input"]["required"]["family"][0])


class Stopped(RuntimeError):
    """A graph ended with an error; `result` says which."""

    def __init__(self, result: Result):
        super().__init__(result.error)
        self.result = result


def _saved(result: Result, tree: Path, node):
    (where,) = result.outputs[node.key]["latents"]
    return load_file(tree / "output" / where["subfolder"] / where["filename"])["latent_tensor"].float()


def one_sentence(result: Result) -> bool:
    """Whether an error is a refusal: one line that a person reads, raised on purpose."""
    said = result.error or ""
    return result.error_type == "ValueError" and "\n" not in said and 20 <= len(said) <= 500


class Lab:
    """A server and one family; `number` counts its graphs, so that no node id comes twice on the server."""

    number = 0

    def __init__(self, server: Server, infos: dict, family: str, **options):
        """options: `weights` and `beside` of `FamilyGraph`."""
        self.server, self.infos, self.family, self.options = server, infos, family, options

    def graph(self) -> FamilyGraph:
        Lab.number += 1
        return FamilyGraph(self.infos, self.family, SIZES.get(self.family, SIZE), Lab.number, **self.options)

    def left(self, graph: FamilyGraph, seconds: float = 300) -> Left:
        """Run a graph. `Stopped` where it ends with an error."""
        result = self.server.client.run(graph, timeout=seconds)
        if not result.ok:
            raise Stopped(result)
        return Left(result, lambda node: _saved(result, self.server.tree, node))

    def run(self, name: str) -> Outcome:
        """One cell, by the node's id."""
        steps = CELLS[name](self.graph)
        try:
            graph = next(steps)
            while True:
                graph = steps.send(self.left(graph))
        except StopIteration as ended:
            return Outcome(WORKS, ended.value)
        except LawBroken as broken:
            return Outcome(LAW, str(broken))
        except Stopped as stopped:
            result = stopped.result
            kind = REFUSED if one_sentence(result) else FAILS
            said = result.error if kind == REFUSED else f"{result.where}: {result.error_type}: {result.error}"
            return Outcome(kind, str(said))
        except Exception as error:  # a mistake in one cell ends no run of hundreds
            return Outcome(FAILS, f"the cell itself: {type(error).__name__}: {error}")


def run_cells(
    server: Server,
    chosen: Iterable[str] | None = None,
    nodes: Iterable[str] | None = None,
    told: Callable[[str, str, Outcome], None] = lambda *_: None,
    **options,
) -> dict[tuple[str, str], Outcome]:
    """{(node id, family): outcome} for these families (None: all that the engine knows) and nodes (None: all).
    options: of `Lab`."""
    infos, found = server.client.object_info(), {}
    for family in chosen or families(infos):
        lab = Lab(server, infos, family, **options)
        for name in nodes or CELLS:
            found[name, family] = lab.run(name)
            told(name, family, found[name, family])
            if not server.alive():
                raise RuntimeError(f"The server ended at {name} on {family}:\n{server.tail()}")
    return found


def figures(found: dict[tuple[str, str], Outcome]) -> dict[str, int]:
    """How many cells there are, and of which kind."""
    count = {kind: sum(outcome.kind == kind for outcome in found.values()) for kind in (WORKS, REFUSED, FAILS, LAW)}
    return {"cells": len(found), **{k: count[k] for k in (WORKS, REFUSED, FAILS)}, "law_failures": count[LAW]}
