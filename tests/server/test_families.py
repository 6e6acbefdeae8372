"""Every node that takes a MODEL on tiny stand-ins of model families: it works and its law holds, or it refuses in one
sentence. Three families whole, and of the others what once failed; `make families` runs them all."""

import pytest
from nulltext.benchmarks.families.__main__ import README, title
from nulltext.benchmarks.families.cells import CELLS
from nulltext.benchmarks.families.graphs import BESIDE
from nulltext.benchmarks.families.run import LAW, REFUSED, WORKS, Lab, families
from nulltext.benchmarks.families.stand_ins import WEIGHTS
from nulltext.nodes import NODE_CLASS_MAPPINGS

WHOLE = ("Flux", "Lumina 2", "Qwen-Image")
#: (family, node, what it must do): blocks called by keyword, latents with frames, tensors beside a text
ONCE = [
    ("HunyuanVideo", "Optimise", WORKS),
    ("Wan 2.1", "SDEdit", WORKS),
    ("Wan 2.1", "RePaintSampler", WORKS),
    ("Wan 2.1", "DiffEditMask", WORKS),
    ("Wan 2.1", "TrainLatentClassifier", WORKS),
    ("Wan 2.1", "ClassifierGuidance", WORKS),
    ("HunyuanDiT", "InvertImage", WORKS),
    ("PixArt", "InvertImage", WORKS),
    ("PixArt", "AttentionReweight", REFUSED),
    ("HiDream", "InvertImage", WORKS),
    ("FLUX.2", "Inverter", WORKS),  # whose short texts are filled in front
    ("FLUX.2", "AttentionReweight", WORKS),
    ("FLUX.2", "PromptToPrompt", WORKS),
    ("FLUX.2", "PromptToPromptGuider", WORKS),
    ("FLUX.2", "ImagicOptimise", WORKS),
    ("Z-Image", "InvertImage", WORKS),
    ("Chroma", "PromptToPrompt", WORKS),
]
EVERYWHERE = ("InvertImage", "Inverter", "Optimise", "Sampler", "Guider", "SDEdit", "RePaintSampler", "DirectEdit")
EVERYWHERE += ("LoadInversion",)  # whose file every family writes anew
KINDS = {"✓": WORKS, "–": REFUSED}
WHOLE_CELLS = [
    (family, node, WORKS if node in EVERYWHERE else None)
    for family in WHOLE
    for node in (name.removeprefix("NullText_") for name in CELLS)
]


#: on the embedded engine nodes/test_beside.py runs every box beside all of these without a server, for time: here one
#: circumstance of each kind a family; all of them on the checkout of COMFYUI_PATH
IN_PROCESS = ("SD1.5", "SD3")
OVER_HTTP = {"beside": {"SD1.5": "noise mask", "SD3": "span"}, "weights": {"SD1.5": "bfloat16", "SD3": "bfloat16"}}
#: what stands beside a run, on a UNet and on a flow transformer: everything that samples works or says why not
SAMPLES = ("InvertImage", "Optimise", "SDEdit", "RePaintSampler", "DirectEdit", "ILVR")
ATTENTION = ("AttentionRecord", "AttentionReweight", "PromptToPrompt", "MasaCtrl", "PromptToPromptGuider", "WordMask")
BY_FORWARD, BY_GRADIENT = ("InvertImage", "SDEdit", "RePaintSampler"), ("Optimise", "CLIPGuidance", "ImagicOptimise")


@pytest.fixture(scope="module")
def lab(comfy):
    """lab(family) for the engine at hand; skipped where it has no class for the family."""
    known = families(comfy.object_info)

    def lab(family: str, **options) -> Lab:
        if family not in known:
            pytest.skip(f"the {comfy.engine} engine has no {family}: set COMFYUI_PATH to one that has")
        return Lab(comfy.server, comfy.object_info, family, **options)

    return lab


@pytest.fixture
def once(comfy):
    """once(kind, family, circumstance): skips what nodes/test_beside.py does on this engine."""

    def once(kind: str, family: str, circumstance: str) -> None:
        if comfy.engine == "embedded" and OVER_HTTP[kind][family] != circumstance:
            pytest.skip("nodes/test_beside.py runs it without a server")

    return once


def marked(family: str, node: str) -> str:
    """What README's table says of a cell."""
    rows = [[part.strip() for part in line.strip("|").split("|")] for line in README.read_text("utf-8").splitlines()]
    (head,) = [row for row in rows if row[0] == "node" and family in row]
    (row,) = [row for row in rows if row[0] == title(f"NullText_{node}") and len(row) == len(head)]
    return KINDS[row[head.index(family)]]


@pytest.mark.parametrize("family, node, must", WHOLE_CELLS + ONCE)
def test_it_works_and_its_law_holds_or_it_refuses(comfy, lab, family, node, must):
    """As README's table says; the embedded engine, which knows fewer of it, may refuse more."""
    outcome = lab(family).run(f"NullText_{node}")
    allowed = (must,) if must else (WORKS, REFUSED) if comfy.engine == "embedded" else (marked(family, node),)
    assert outcome.kind in allowed, outcome.says


@pytest.mark.parametrize("family", IN_PROCESS)
@pytest.mark.parametrize("beside", BESIDE)
def test_it_works_beside(lab, once, family, beside):
    """Batches, weight patches, noise masks; prompts for an area, a mask or a part of the steps."""
    once("beside", family, beside)
    for node in SAMPLES:
        outcome = lab(family, beside=beside).run(f"NullText_{node}")
        assert outcome.kind in (WORKS, REFUSED), f"{node}: {outcome.says}"
        assert outcome.kind == WORKS or beside in ("area", "mask", "span"), f"{node}: {outcome.says}"


@pytest.mark.parametrize("family", IN_PROCESS)
@pytest.mark.parametrize("weights", WEIGHTS[1:])
def test_weights_of_other_precisions(lab, once, family, weights):
    """What only asks the network works; what needs gradients works or refuses, and refuses quantised weights."""
    once("weights", family, weights)
    for node in (*BY_FORWARD, *BY_GRADIENT):
        outcome = lab(family, weights=weights).run(f"NullText_{node}")
        must = (WORKS,) if node in BY_FORWARD else (REFUSED,) if weights == "int8" else (WORKS, REFUSED)
        if node == "Optimise" and "throughout" in weights:
            must += (LAW,)  # its law is two equal runs, which half precision rounds apart
        assert outcome.kind in must, f"{node}: {outcome.says}"


@pytest.mark.parametrize(
    "circumstance",
    [*({"beside": b} for b in ("batch", "lora", "noise mask")), *({"weights": w} for w in ("bfloat16", "int8"))],
    ids=lambda circumstance: "".join(circumstance.values()),
)
def test_joint_attention_is_edited_beside_it_too(comfy, lab, circumstance):
    if comfy.engine == "embedded":
        pytest.skip("this engine gives no way into a transformer's attention")
    for node in ATTENTION:
        outcome = lab("SD3", **circumstance).run(f"NullText_{node}")
        assert outcome.kind == WORKS, f"{node}: {outcome.says}"


def test_a_prompt_for_a_part_of_latents_with_frames(comfy, lab):
    if comfy.engine == "embedded":
        pytest.skip("this engine has no model whose latents have frames")
    for node in SAMPLES:
        outcome = lab("Qwen-Image", beside="area").run(f"NullText_{node}")
        assert outcome.kind in (WORKS, REFUSED), f"{node}: {outcome.says}"
    assert lab("Qwen-Image", beside="area").run("NullText_SDEdit").kind == WORKS


def test_every_node_that_takes_a_model_has_a_cell():
    takes = {key for key, node in NODE_CLASS_MAPPINGS.items() if any(i.kind == "MODEL" for i in node.INPUTS)}
    assert set(CELLS) == takes
