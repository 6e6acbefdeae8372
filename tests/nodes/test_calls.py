"""README's table of calls, counted: every row of it is a run whose network calls and rows are those that it says."""

import ast
from pathlib import Path

import pytest
import torch
from nulltext import NODE_CLASS_MAPPINGS
from nulltext.engine.sampler import sample_latent
from nulltext.engine.weights import layers, to_lora_model
from nulltext.nodes.asyrp import ONE_CALL, TWO_CALLS
from nulltext.nodes.h_space import PROMPTS
from nulltext.nodes.null_text import FOR_ALL
from nulltext.samplers.tuning.lora import low_rank_all
from nulltext.tests.nodes.text_pair import Tower
from nulltext.tests.running import CLIP, Pixels, likes_ones, run

README = Path(__file__).resolve().parents[2] / "README.md"
HEADER = "| node | how | calls | rows at cfg 1 | rows at another cfg |"
#: the numbers that the formulas' words stand for here
NUMBERS = {"N": 5, "iterations": 3, "inner": 2, "depth": 0.6, "strength": 0.4, "average": 2, "maps": 3}
NUMBERS |= {"above": 3, "below": 2, "samples": 6, "prompts": 2, "strengths": 3}
STEPS, INNER = NUMBERS["N"], NUMBERS["inner"]


def readme_table(header: str) -> list[tuple[str, ...]]:
    """The cells of README's table under this header, row by row."""
    text = README.read_text(encoding="utf-8")
    lines = text[text.index(header) :].split("\n\n")[0].splitlines()[2:]
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]


def value(formula: str, numbers: dict[str, float]) -> int:
    """What a formula of a table comes to, its words taken for these numbers."""

    def of(node):
        if isinstance(node, ast.BinOp):
            left, right = of(node.left), of(node.right)
            return left + right if isinstance(node.op, ast.Add) else left * right
        return numbers[node.id] if isinstance(node, ast.Name) else node.value

    return round(of(ast.parse(formula.replace(" x ", " * "), mode="eval").body))


@pytest.fixture
def runs(tiny, ends, latent, prompt, monkeypatch):
    """(node, how) -> what it needs is made, and then (cfg) -> its run."""
    positive, negative = ends
    picture, mask = latent[:1], torch.ones(1, 64, 64)
    read = {"slots": {0, 1, 2}}
    monkeypatch.setattr("nulltext.nodes.replay.readers", lambda node_id: read["slots"])

    def invert(pivot, seen=False, **more):
        def at(cfg):
            read["slots"] = {0, 1} if seen else {0}
            given = {"positive": positive, "negative": negative, "latent": picture, "pivot": pivot, "cfg": cfg}
            given |= {"steps": STEPS, "iterations": NUMBERS["iterations"], "use_cache": False, **more}
            return run("InvertImage", model=tiny, **given)

        return at

    def inverter(correction, seen=False):
        def at(cfg):
            read["slots"] = {0, 1} if seen else {0}
            given = {"positive": positive, "negative": negative, "latent": picture, "correction": correction}
            given |= {"steps": STEPS, "cfg": cfg, "inner_steps": INNER, "tolerance": 0.0, "use_cache": False}
            return run("Inverter", model=tiny, **given)

        return at

    def of_inversion(name, cfg_name="target_cfg", **more):
        inversion = invert("DDIM")(1.0)[0]

        def at(cfg):
            return run(name, model=tiny, inversion=inversion, negative=negative, **{cfg_name: cfg}, **more)

        return at

    def plain(name, **more):
        return lambda cfg: run(name, model=tiny, positive=positive, negative=negative, cfg=cfg, **more)

    def direct(method, **more):
        given = {"source": positive, "target": negative, "negative": negative, "latent": picture, "method": method}
        given |= {"steps": STEPS, "strength": NUMBERS["strength"], **more}
        return lambda cfg: run("DirectEdit", model=tiny, source_cfg=cfg, target_cfg=cfg, **given)

    def direction(_):
        given = {"positive": positive, "target": negative, "latent": picture * 0, "way": PROMPTS}
        return run("HSpaceDirection", model=tiny, **given, steps=STEPS, samples=NUMBERS["samples"])

    def asyrp(way):
        given = {"direction": direction(0)[0], "calls": way, "t_edit": 0.0, "t_boost": 0.0}
        sampler, sigmas = run("AsyrpSampler", model=tiny, **given)

        def at(cfg):
            with torch.inference_mode():
                return sample_latent(tiny, positive, negative, cfg, sampler, sigmas, {"samples": picture}, 0)

        return at

    def repaint(title):  # so many calls of a network that computes nothing
        monkeypatch.setattr(tiny.model.diffusion_model, "forward", lambda x, *_, **__: torch.zeros_like(x))
        return plain("RePaintSampler", latent=picture, mask=mask, schedule=title)

    def grid():
        monkeypatch.setattr("nulltext.nodes.edit_grid.worded", lambda clip, text: positive)
        texts = {"prompts": "\n".join("ab"), "strengths": str(NUMBERS["strength"])}
        return of_inversion("EditGrid", clip=CLIP, vae=Pixels(), **texts)

    def strip():
        given = {"direction": direction(0)[0], "t_edit": 0.0, "strengths": "-1, 1, 2", "latent": picture * 0}
        return plain("HSpaceMap", **given, vae=Pixels(), image_text=Tower(), attributes="red | blue", steps=STEPS)

    def by_degree(cfg):
        given = {"positive": positive, "latent": picture, "inversion_steps": STEPS, "steps": STEPS, "unseen_passes": 0}
        lora = low_rank_all(layers(tiny).items(), rank=1, seed=0)
        return run("DiffusionCLIPEdit", model=tiny, lora_model=to_lora_model(lora, {}, tiny), **given)

    def start_noise():
        given = {"latent": picture * 0, "steps": STEPS, "iterations": NUMBERS["iterations"]}
        likes = likes_ones(tiny)
        return lambda cfg: run(
            "OptimiseStartNoise", model=likes, positive=positive, negative=negative, cfg=cfg, **given
        )

    words = {"source": prompt("a red circle"), "edited": prompt("a blue circle")}
    whole = {"latent": picture, "mask": mask, "steps": STEPS}
    return {
        ("Invert Image", "DDIM"): lambda: invert("DDIM"),
        ("Invert Image", "DDIM, lower level"): lambda: invert("DDIM, lower level"),
        ("Invert Image", "fixed point"): lambda: invert("fixed point"),
        ("Invert Image", "exact pair"): lambda: invert("exact pair"),
        ("Invert Image", "edit-friendly DDPM"): lambda: invert("edit-friendly DDPM"),
        ("Invert Image", "DDIM, depth"): lambda: invert("DDIM", depth=NUMBERS["depth"]),
        ("Invert Image", "DDIM, reconstruction wired"): lambda: invert("DDIM", True),
        ("Null-Text Inverter", "null-text, no tolerance"): lambda: inverter("null-text"),
        ("Null-Text Inverter", "negative prompt, reconstruction wired"): lambda: inverter("negative prompt", True),
        ("Null-Text Inverter", "none, reconstruction not wired"): lambda: inverter("none"),
        ("Null-Text Optimise", "no tolerance"): lambda: of_inversion(
            "Optimise", "cfg", inner_steps=INNER, tolerance=0.0, use_cache=False
        ),
        ("Null-Text Optimise", "one for all steps"): lambda: of_inversion(
            "Optimise", "cfg", inner_steps=INNER, use_cache=False, embeddings=FOR_ALL
        ),
        ("Null-Text Sampler", "strength"): lambda: of_inversion(
            "Sampler", strength=NUMBERS["strength"], positive=negative
        ),
        ("Prompt-to-Prompt", "from noise"): lambda: (
            lambda cfg: run(
                "PromptToPrompt", model=tiny, negative=negative, cfg=cfg, steps=STEPS, latent=picture * 0, **words
            )
        ),
        ("Prompt-to-Prompt", "from an inversion, cross_steps 1"): lambda: of_inversion(
            "PromptToPrompt", "cfg", cross_steps=1.0, **words
        ),
        ("MasaCtrl", "from noise"): lambda: (
            lambda cfg: run(
                "MasaCtrl", model=tiny, negative=negative, cfg=cfg, steps=STEPS, latent=picture * 0, **words
            )
        ),
        ("MasaCtrl", "from an inversion, start 0"): lambda: of_inversion("MasaCtrl", "cfg", start=0.0, **words),
        ("Direct Edit", "FlowEdit"): lambda: direct("FlowEdit", average=NUMBERS["average"]),
        ("Direct Edit", "InfEdit"): lambda: direct("InfEdit"),
        ("RF-Inversion", ""): lambda: (
            lambda cfg: run(
                "RFInversion", model=tiny, positive=positive, negative=negative, latent=picture, steps=STEPS, cfg=cfg
            )
        ),
        ("SDEdit", ""): lambda: plain("SDEdit", **whole),
        ("DiffEdit Mask", ""): lambda: (
            lambda cfg: run(
                "DiffEditMask", model=tiny, source=positive, target=negative, latent=picture, maps=NUMBERS["maps"]
            )
        ),
        ("DiffEdit", ""): lambda: of_inversion("DiffEdit", "cfg", positive=positive, mask=mask, depth=NUMBERS["depth"]),
        ("Blended Diffusion", ""): lambda: plain("BlendedDiffusion", **whole),
        ("Cartoon (Null-Text Disturbance)", ""): lambda: plain(
            "DisturbanceSampler", latent=picture * 0, steps_above=NUMBERS["above"], steps_below=NUMBERS["below"]
        ),
        ("ILVR Sampler", ""): lambda: plain("ILVRSampler", reference=picture, steps=STEPS),
        ("RePaint Inpaint", "paper, 105 calls"): lambda: repaint("paper, 105 calls (25/5/5)"),
        ("RePaint Inpaint", "paper, 230 calls"): lambda: repaint("paper, 230 calls (50/5/5)"),
        ("h-Space Direction", "two prompts, up to 8 samples"): lambda: direction,
        ("Asyrp Sampler", "one call of two rows, t_boost 0, t_edit 0"): lambda: asyrp(ONE_CALL),
        ("Asyrp Sampler", "two calls, t_boost 0, t_edit 0"): lambda: asyrp(TWO_CALLS),
        ("One Inversion, Many Edits", "prompts, strength"): grid,
        ("h-Space Map", "strengths, t_edit 0"): strip,
        ("DiffusionCLIP Edit", "inversion and steps of N"): lambda: by_degree,
        ("Optimise Start Noise", "and N x iterations backward"): start_noise,
    }


@pytest.mark.parametrize("row", readme_table(HEADER), ids=lambda row: " ".join(row[:2]).strip())
def test_a_row_of_the_table_is_what_the_network_is_asked(tiny, runs, network_calls, row):
    node, how, calls, *rows = row
    asked = runs[node, how]()
    seen = network_calls(tiny)
    for cfg, formula in zip((1.0, 4.0), rows, strict=True):
        if formula:
            before = len(seen)
            asked(cfg)
            counted = seen[before:]
            assert (len(counted), sum(len(x) for x, _ in counted)) == (
                value(calls, NUMBERS),
                value(formula, NUMBERS),
            ), f"cfg {cfg:g}"


def test_the_table_names_boxes_of_the_pack():
    titles = {said for node in NODE_CLASS_MAPPINGS.values() for said in (node.TITLE, node.TITLE.split(" (")[0])}
    assert {row[0] for row in readme_table(HEADER)} <= titles
