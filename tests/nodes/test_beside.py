"""Every box that takes a MODEL beside what people wire with it: weights of other precisions, two pictures, a weight
patch, a ControlNet, a noise mask, prompts for a part of the picture or of the steps. It works and its law holds, or it
refuses in one sentence; which boxes refuse stands here.

The cells of `make families`, in this process, on stand-ins of SD1.5 (narrower, for time) and of SD3, a flow family."""

import importlib.util
from pathlib import Path

import pytest
import torch
from nulltext.benchmarks.families import stand_ins
from nulltext.benchmarks.families.cells import CELLS
from nulltext.benchmarks.families.graphs import BESIDE
from nulltext.benchmarks.families.run import LAW, REFUSED, WORKS
from nulltext.tests.stand_ins import LEAST, streaming
from safetensors.torch import load_file

if importlib.util.find_spec("comfy.nodes") is None:
    pytest.skip("these cells call the embedded engine's nodes", allow_module_level=True)

SMALL = {"channel_mult": [1, 1], "num_res_blocks": [1, 1], "transformer_depth": [1, 1], "transformer_depth_middle": 1}
SMALL |= {"transformer_depth_output": [1] * 4}
#: several at once where the one hides nothing of the other, for time; throughout: computed so too, as on a GPU
CIRCUMSTANCES = {
    "fp16": {"weights": "float16 throughout", "beside": "lora + noise mask"},
    "bf16": {"weights": "bfloat16 throughout", "beside": "batch"},
    "fp8": {"weights": "float8_e4m3fn", "beside": "controlnet"},
    "int8": {"weights": "int8"},
    "streamed": {"weights": "streamed"},
    "parts": {"weights": "float16", "beside": "mask + span"},
    "area": {"weights": "bfloat16", "beside": "area", "size": 16},  # the engine itself can't feather smaller areas
}
#: beside an area, for time: what asks the network otherwise than through a sampler's whole conditions
BY_AREA = ("InvertImage", "Inverter", "Optimise", "Sampler", "Guider", "DirectEdit", "SDEdit", "RePaintSampler", "ILVR")
BY_AREA += ("DiffEditMask", "Disturbance", "DisturbanceSampler", "HSpaceMap", "PromptToPrompt", "MasaCtrl")
BY_AREA += ("HSpaceDirection", "AsyrpSampler", "HSpaceTrain")
ATTENTION = {"AttentionRecord", "AttentionReweight", "PromptToPrompt", "MasaCtrl", "PromptToPromptGuider", "WordMask"}
H_SPACE = {"HSpaceDirection", "HSpaceTrain", "HSpaceMap", "AsyrpSampler", "LoadDirection"}
#: what a transformer refuses in this engine, whatever stands beside
NO_UNET = ATTENTION | H_SPACE | {"MakeControlNet", "TrainControlNet"}
PAIRS = {"PromptToPrompt", "MasaCtrl", "PromptToPromptGuider"}  #: which edit one prompt for the whole picture
TUNES_BY_TEXTS = {"DiffusionCLIPTune", "DiffusionCLIPEdit"}
#: what asks for gradients of the network, or whose cell trains something for it to use
BY_GRADIENT = {"Inverter", "Optimise", "Sampler", "BlendedDiffusion", "CLIPGuidance", "OptimiseStartNoise"}
BY_GRADIENT |= {"HSpaceTrain"}
BY_GRADIENT |= {"TrainLora", "LoadLora", "MixModels", "TrainEmbedding", "ImagicOptimise", "ImagicGuider"}
BY_GRADIENT |= {"MakeControlNet", "TrainControlNet"} | TUNES_BY_TEXTS
REFUSES = {
    "bf16": {"ImagicOptimise", "ImagicGuider"},  # which learn one picture
    "fp8": TUNES_BY_TEXTS | {"ImagicOptimise", "ImagicGuider"},  # whose captions are plain prompts
    "int8": BY_GRADIENT,
    "parts": PAIRS | TUNES_BY_TEXTS | {"HSpaceDirection"},
    "area": PAIRS
    | {"Inverter", "Optimise", "Sampler", "Disturbance", "DisturbanceSampler"}
    | {"HSpaceDirection", "HSpaceMap", "AsyrpSampler"},  # whose direction has h's size
}
#: whose law is two equal runs, which a network that computes in half precision rounds apart; by family
ROUNDED = {
    "SD1.5": {"Optimise", "Sampler", "AttentionRecord", "PromptToPromptGuider", "OptimiseStartNoise"},
    # DiffEdit Mask: the heat of equal prompts is rounding, scaled to 1
    "SD3": {"Sampler", "DiffEditMask", "OptimiseStartNoise"},
}
#: what the circumstances above hide: a refusal of what stands beside hides the precision, half precision hides a law
IMAGIC = {"ImagicOptimise", "ImagicGuider"}
HIDDEN = {
    "fp8 alone": {"weights": "float8_e4m3fn"},
    "bf16 alone": {"weights": "bfloat16 throughout"},
    "fp32": {"beside": "batch + lora + noise mask"},
}
HIDDEN_BOXES = {"fp8 alone": IMAGIC | TUNES_BY_TEXTS, "bf16 alone": IMAGIC}  # fp32: those that are rounded


@pytest.fixture
def lab(family_lab, narrow, monkeypatch):
    """lab(family, **options) -> a `Lab` in this process."""
    narrow(SMALL)
    convolve = torch.nn.functional.conv2d

    def summed_in_fp32(x, weight, bias=None, *more, **named):
        """A CPU without fp16 takes a hundred times as long to convolve in it; what is rounded to it is the result."""
        if x.dtype != torch.float16 or weight.dtype != torch.float16:
            return convolve(x, weight, bias, *more, **named)
        return convolve(x.float(), weight.float(), bias if bias is None else bias.float(), *more, **named).half()

    monkeypatch.setattr(torch.nn.functional, "conv2d", summed_in_fp32)
    return family_lab


class StreamedClip(stand_ins.Clip):
    def wrap(self, clip, family):
        return (streaming(super().wrap(clip, family)[0], "cond_stage_model"),)


class StreamedVae(stand_ins.Vae):
    def make(self, model):
        return (streaming(super().make(model)[0], "first_stage_model"),)


def allowed(refuses: bool, rounded: bool) -> tuple[str, ...]:
    return (REFUSED,) if refuses else (WORKS, LAW) if rounded else (WORKS,)


@pytest.mark.parametrize("family", ["SD1.5", "SD3"])
@pytest.mark.parametrize("circumstance", CIRCUMSTANCES)
def test_every_box_works_or_refuses_where_it_is_known_to(lab, family, circumstance):
    here = lab(family, **CIRCUMSTANCES[circumstance])
    if circumstance == "streamed":
        here.own = {"Families_Clip": StreamedClip, "Families_Vae": StreamedVae}
    refuses = REFUSES.get(circumstance, set()) | (NO_UNET if family == "SD3" else set())
    names = BY_AREA if circumstance == "area" else [name.removeprefix("NullText_") for name in CELLS]
    found = {name: here.run(f"NullText_{name}") for name in names}
    rounded = ROUNDED[family] if "throughout" in here.options.get("weights", "") else set()
    wrong = {n: o for n, o in found.items() if o.kind not in allowed(n in refuses, n in rounded)}
    assert not wrong, "\n".join(f"{name}: {outcome.kind}: {outcome.says}" for name, outcome in wrong.items())


@pytest.mark.parametrize("family", ["SD1.5", "SD3"])
@pytest.mark.parametrize("circumstance", HIDDEN)
def test_what_a_circumstance_hides_works_without_it(lab, family, circumstance):
    here = lab(family, **HIDDEN[circumstance])
    names = HIDDEN_BOXES.get(circumstance) or ROUNDED[family]
    found = {name: here.run(f"NullText_{name}") for name in sorted(names)}
    wrong = {n: o for n, o in found.items() if o.kind not in allowed(family == "SD3" and n in NO_UNET, False)}
    assert not wrong, "\n".join(f"{name}: {outcome.kind}: {outcome.says}" for name, outcome in wrong.items())


@pytest.fixture
def compiled(lab, narrow, monkeypatch, caplog):
    """compiled(node) -> the outcome on a network compiled as an object patch, the way of ComfyUI's node of 2024; the
    backend that compiles nothing traces the same Python."""
    load = stand_ins.Model.load

    def loaded(self, family, weights):
        (model,) = load(self, family, weights)
        whole = torch.compile(model.get_model_object("diffusion_model"), backend="eager")
        model.add_object_patch("diffusion_model", whole)
        return (model,)

    monkeypatch.setattr(stand_ins.Model, "load", loaded)
    narrow(LEAST)

    def run(node):
        with caplog.at_level("INFO"):
            outcome = lab("SD1.5").run(f"NullText_{node}")
        assert "can't be told" not in caplog.text
        return outcome

    return run


def test_a_compiled_network_is_differentiated_too(compiled):
    outcome = compiled("Optimise")
    assert outcome.kind == WORKS, outcome.says


@pytest.mark.parametrize("node, begins_at_zero", [("TrainLora", "lora_up"), ("TrainControlNet", "zero_convs")])
def test_a_compiled_network_is_tuned_too(compiled, engine, node, begins_at_zero):
    """The file is looked at, for the engine of 2024 itself can't use one on the compiled network: it leaves a LoRA out
    and stops at a ControlNet that shares the network's weights."""
    outcome = compiled(node)
    assert not outcome.says.startswith("NullText"), outcome.says
    models = Path(engine.get("folder_paths").get_folder_paths("checkpoints")[0]).parent
    (made,) = models.rglob("families*.safetensors")
    assert any(bool(value.any()) for key, value in load_file(made).items() if begins_at_zero in key)


def test_every_circumstance_is_met():
    met = {name for each in CIRCUMSTANCES.values() for name in each.get("beside", "").split(" + ") if name}
    weights = {each["weights"] for each in CIRCUMSTANCES.values() if "weights" in each}
    assert met == set(BESIDE) and weights == set(stand_ins.WEIGHTS[1:])
