"""Every node that takes a MODEL on tiny stand-ins of model families: it works and its law holds, or it refuses in one
sentence. Three families whole, and of the others what once failed; `make families` runs them all."""

import pytest
from nulltext.benchmarks.families.cells import CELLS
from nulltext.benchmarks.families.run import REFUSED, WORKS, Lab, families
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
]
EVERYWHERE = ("InvertImage", "Inverter", "Optimise", "Sampler", "Guider", "SDEdit", "RePaintSampler", "DirectEdit")
WHOLE_CELLS = [
    (family, node, WORKS if node in EVERYWHERE else None)
    for family in WHOLE
    for node in (name.removeprefix("NullText_") for name in CELLS)
]


@pytest.fixture(scope="module")
def lab(comfy):
    """lab(family) for the engine at hand; skipped where it has no class for the family."""
    known = families(comfy.object_info)

    def lab(family: str) -> Lab:
        if family not in known:
            pytest.skip(f"the {comfy.engine} engine has no {family}: set COMFYUI_PATH to one that has")
        return Lab(comfy.server, comfy.object_info, family)

    return lab


@pytest.mark.parametrize("family, node, must", WHOLE_CELLS + ONCE)
def test_it_works_and_its_law_holds_or_it_refuses(lab, family, node, must):
    outcome = lab(family).run(f"NullText_{node}")
    assert outcome.kind in ((WORKS, REFUSED) if must is None else (must,)), outcome.says


def test_every_node_that_takes_a_model_has_a_cell():
    takes = {key for key, node in NODE_CLASS_MAPPINGS.items() if any(i.kind == "MODEL" for i in node.INPUTS)}
    assert set(CELLS) == takes
