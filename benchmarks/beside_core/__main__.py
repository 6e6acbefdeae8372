"""Seconds of a training step beside core's Train LoRA: `make bench NAME=beside_core`.

The demo model's own weights in fp32, the same pictures, captions, batch, rank and layers (every linear and
convolution of the blocks; core's node also trains all norms and biases, and can't leave them out), interleaved. A step
is the time from one call of the network with gradients to the next. Core's node stands in newer engines only: where
this interpreter's engine has none, the one that COMFYUI_PATH names is asked, in a process of its own; where that is
not set either, the figure is null and the reason is printed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import time
from functools import partial

import torch
from torch import Tensor

from ...batch import engines
from ...demo import captions, scenes
from ...engine import comfy
from ...engine.tuning_set import TuningSet
from ...nodes.train_lora import LEAVE, TrainLora
from ..harness import ROOT
from ..lab import loaded, some

STEPS, RANK, REPEATS, BATCHES = 6, 8, 5, (1, 2)


def core_node():
    """Core's node class, or None where this engine has none."""
    try:
        return importlib.import_module("comfy_extras.nodes_train").TrainLoraNode
    except ImportError:
        return None


def step_seconds(model, train) -> float:
    """Median seconds from one differentiable call of the network to the next while train() runs."""
    calls = []

    def called(*_):
        if torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
            calls.append(time.perf_counter())

    handle = model.model.diffusion_model.register_forward_pre_hook(called)
    try:
        train()
    finally:
        handle.remove()
    return statistics.median(b - a for a, b in zip(calls[1:], calls[2:]))  # the first step also warms up


@torch.inference_mode()
def measure(node, quick: bool) -> dict[str, list[float]]:
    """Batch -> [seconds a step of ours, of core's, median ratio of the interleaved repeats]."""
    model, clip, vae = loaded()
    out = {}
    for batch in BATCHES:
        truth = some(batch, 91)
        pictures = scenes.draw(truth)[0]
        latents = vae.encode(pictures.movedim(1, -1))
        texts = [f"{text} sks" for text in captions.captions(truth)]
        names = tuple(f"picture {i}" for i in range(batch))
        taught = TuningSet(tuple(z.float().cpu().clone() for z in latents), tuple(texts), (None,) * batch, names)
        conds = [comfy.encode(clip, text)[0] for text in texts]
        given = {n: s[1]["default"] for n, s in TrainLora.INPUT_TYPES()["required"].items() if "default" in s[1]}
        given |= {"targets": "all linear and conv", "rank": RANK, "batch": batch, "text_encoder": LEAVE}
        given |= {"steps": STEPS, "sample_every": 0, "learning_rate": 5e-4, "alpha": 1.0}

        def ours(i, given=given, taught=taught):
            made = given | {"training_seed": i, "file_name": f"bench/beside_{i}"}
            TrainLora().run(model=model, clip=clip, pictures=taught, **made)

        def cores(i, latents=latents, conds=conds, batch=batch):
            with torch.inference_mode(False):
                copies: list[Tensor] = [z.clone() for z in latents]
            told = {"latents": {"samples": torch.stack(copies)}, "positive": conds, "batch_size": batch}
            told |= {"grad_accumulation_steps": 1, "steps": STEPS, "learning_rate": 5e-4, "rank": RANK, "seed": i}
            told |= {"optimizer": "AdamW", "loss_function": "MSE", "training_dtype": "fp32", "lora_dtype": "fp32"}
            told |= {"algorithm": "LoRA", "gradient_checkpointing": False, "existing_lora": "[None]"}
            node().train(model, **told)

        pairs = []
        for i in range(1 if quick else REPEATS):
            pairs.append([step_seconds(model, partial(train, i)) for train in (ours, cores)])
        mine, theirs = (statistics.median(side) for side in zip(*pairs))
        out[str(batch)] = [mine, theirs, statistics.median(a / b for a, b in pairs)]
    return out


def measured(quick: bool = False) -> tuple[dict[str, list[float]] | None, str]:
    """(what `measure` gives, "") or (None, why not)."""
    loaded()  # the engine that this interpreter has
    node = core_node()
    if node is not None:
        return measure(node, quick), ""
    if not os.environ.get("COMFYUI_PATH"):
        return None, "this engine has no Train LoRA: set COMFYUI_PATH to a ComfyUI that has one"
    python = engines.checkout().command[0]
    done = subprocess.run(
        [python, str(ROOT / "tools"), "beside_core", *(["--quick"] if quick else [])], capture_output=True, text=True
    )
    if done.returncode:
        return None, f"the engine of COMFYUI_PATH failed: {(done.stderr.strip().splitlines() or ['no word'])[-1]}"
    return json.loads(done.stdout.strip().splitlines()[-1])["batches"], ""


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(prog="make bench NAME=beside_core", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one repeat: does it run at all")
    found, why = measured(parser.parse_args(argv).quick)
    if found is None:
        print(why)
    for batch, (mine, theirs, ratio) in (found or {}).items():
        print(f"batch {batch}: {mine:.3f} s a step, core {theirs:.3f} s, ratio {ratio:.3f}")
    ratio = None if found is None else found["1"][2]
    print(json.dumps({"seconds_per_step_over_core": ratio, "batches": found, "why": why}))


if __name__ == "__main__":
    main()
