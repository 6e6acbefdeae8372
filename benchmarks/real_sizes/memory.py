"""Null-text on one picture in a process of its own: what it adds to the memory in use. Linux only."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

from ..harness import ROOT
from .timed import lab


def of_process(name: str) -> int:
    """Bytes, by /proc's name: VmRSS is now, VmHWM the most since the peak was forgotten."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def null_text(size: int, width: int, checkpointing: bool, family: str) -> dict[str, float]:
    """One box, Optimise: GB that it needs beside what was loaded, GB of weights, and the seconds of its
    calls with gradients and of their backward passes."""
    torch.set_num_threads(1)
    here = lab(size, width, family=family)
    here.load()
    graph = here.graph()
    more = {"cfg": 7.5, "inner_steps": 2, "tolerance": 0.0, "use_cache": False, "checkpointing": checkpointing}
    graph.kept(graph.own("Optimise", inversion=graph.inversion("DDIM", 2), **more)[1])
    weights = sum(p.nbytes for p in here.outside["network"].parameters())
    before = of_process("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    with here.watched() as spent:
        here.left(graph)
    added = of_process("VmHWM") - before
    return {"added": added / 1e9, "weights": weights / 1e9, "seconds": spent.recorded}


def apart(folder: str, *given) -> dict[str, float]:
    """`null_text` in a new process, whose memory nothing else has used; folder: where it begins."""
    begin = f"import json, runpy; runpy.run_path({str(ROOT / 'tools' / '__main__.py')!r})['load_pack']()"
    call = f"from {__name__} import null_text; print(json.dumps(null_text(*{given!r})))"
    command = [sys.executable, "-c", f"{begin}; {call}"]
    made = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(made.stdout.splitlines()[-1])
