"""Loads the pack from its folder, whatever that is called, as module `nulltext`.

Then a ComfyUI engine without a server, and tiny random models on it; skipped only where no engine can be imported.

The interpreter decides which engine it is: the pip package where that is installed, else the checkout of
COMFYUI_PATH.
"""

import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent

if "nulltext" not in sys.modules:
    spec = importlib.util.spec_from_file_location(
        "nulltext", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    pack = importlib.util.module_from_spec(spec)
    sys.modules["nulltext"] = pack
    spec.loader.exec_module(pack)


def _import_engine():
    if importlib.util.find_spec("comfy") is None:
        path = os.environ.get("COMFYUI_PATH")
        if not path:
            pytest.skip("no ComfyUI engine can be imported here", allow_module_level=True)
        sys.path.insert(0, path)
    if not hasattr(sys.modules.get("nodes"), "NODE_CLASS_MAPPINGS"):
        sys.modules.pop("nodes", None)  # pytest's stand-in for this folder; upstream has a module of that name
    from comfy.cli_args import args

    args.cpu = True
    if "comfy.cmd.folder_paths" not in sys.modules and "folder_paths" not in sys.modules:
        from nulltext.benchmarks.lab import engine_folders

        engine_folders(args)


UNET = {"image_size": 32, "in_channels": 4, "model_channels": 32, "out_channels": 4, "num_res_blocks": [1, 1]}
UNET |= {"channel_mult": [1, 2], "num_heads": 4, "num_head_channels": -1, "use_spatial_transformer": True}
UNET |= {"transformer_depth": [1, 1], "transformer_depth_output": [1, 1, 1, 1], "transformer_depth_middle": 1}
UNET |= {"context_dim": 64, "legacy": False, "use_linear_in_transformer": False, "adm_in_channels": None}
UNET |= {"use_temporal_attention": False}


def build(kind="EPS", dtype=torch.float32, adm=None):
    """MODEL with random weights, made in inference mode as a checkpoint loader makes them."""
    _import_engine()
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models

    config = {**UNET, "dtype": dtype}
    if adm:
        config.update(adm_in_channels=adm, num_classes="sequential")
    with torch.inference_mode():
        made = comfy.supported_models.SD15(dict(config))
        made.unet_config = config
        if dtype != torch.float32:
            made.manual_cast_dtype = torch.float32
        if kind == "FLOW":
            made.sampling_settings = {"shift": 1.0}
        base = comfy.model_base.BaseModel(made, comfy.model_base.ModelType[kind], device="cpu")
        generator = torch.Generator().manual_seed(0)
        for name, p in base.named_parameters():
            fan = max(p[0].numel(), 1) if p.ndim > 1 else 1
            value = torch.randn(p.shape, generator=generator) * (fan**-0.5 if p.ndim > 1 else 0.02)
            p.data.copy_(value + (1.0 if p.ndim == 1 and name.endswith("weight") else 0.0))
        return comfy.model_patcher.ModelPatcher(base, torch.device("cpu"), torch.device("cpu"))


def condition(seed=1, tokens=77, batch=1, **extra):
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode():
        return [
            [torch.randn(batch, tokens, 64, generator=generator), {"pooled_output": torch.zeros(batch, 64), **extra}]
        ]


@pytest.fixture(scope="session")
def engine():
    _import_engine()
    import nulltext.engine.comfy as module

    return module


@pytest.fixture
def tiny(engine):
    """An SD1-like eps model of 1M random weights."""
    return build()


@pytest.fixture
def make_model(engine):
    return build


@pytest.fixture
def make_condition():
    return condition


@pytest.fixture
def ends(make_condition):
    """A positive and a negative prompt."""
    return make_condition(1), make_condition(2)


@pytest.fixture
def prompt(make_condition):
    """prompt(text): a CONDITIONING as Prompt (with words) makes it, a token a word, other words other embeddings."""
    from nulltext.engine.words import KEY

    def make(text):
        words = text.split()
        ids = [900, *(sum(map(ord, w)) for w in words)] + [901] * (76 - len(words))
        known = [{"text": w, "tokens": [i + 1]} for i, w in enumerate(words)]
        embedding = torch.cat([make_condition(i)[0][0][:, :1] for i in ids], 1)
        record = {"text": text, "words": known, "ids": ids, "chunks": 1}
        return [[embedding, {"pooled_output": torch.zeros(1, 64), KEY: [record]}]]

    return make


@pytest.fixture
def inference():
    """The test runs in inference mode, as nodes do."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def vae(engine):
    """The demo family's VAE with random weights."""
    from nulltext.demo.autoencoder import AutoEncoder

    torch.manual_seed(0)
    state = AutoEncoder().state_dict()
    with torch.inference_mode():
        return engine.get("sd").VAE(sd={**state, "vae_scale": torch.tensor(0.18215), "vae_shift": torch.tensor(0.0)})


@pytest.fixture(scope="module")
def image_text():
    """Towers for pictures, texts and noisy latents with random weights."""
    from nulltext.demo.image_text import IMAGE, NOISY, TEXT, WORDS
    from nulltext.samplers.networks.image_text import ImageText

    torch.manual_seed(0)
    with torch.inference_mode(False):
        made = ImageText(WORDS, IMAGE, TEXT, NOISY)
        for p in made.noisy.parameters():  # zero-initialised branches would hide mistakes
            if p.ndim > 1 and not p.any():
                torch.nn.init.normal_(p, std=0.3)
        return made.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def classifier():
    """A noise-aware classifier of latents with random weights: cat, dog, owl."""
    from nulltext.samplers.networks.latent_classifier import LatentClassifier

    torch.manual_seed(1)
    with torch.inference_mode(False):
        made = LatentClassifier.new(["cat", "dog", "owl"], 4, 8, width=16)
        for p in made.parameters():  # zero-initialised branches would hide mistakes
            if p.ndim > 1 and not p.any():
                torch.nn.init.normal_(p, std=0.05)
        return made.eval().requires_grad_(False)


@pytest.fixture
def latent():
    with torch.inference_mode():
        return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3)) / 0.18215


@pytest.fixture
def short_of_memory(engine, monkeypatch):
    """short_of_memory(model, rows): from now on the engine believes that larger calls than `rows` rows don't fit."""

    def limit(model, rows=2):
        management = engine.get("model_management")
        ask = management.get_free_memory
        monkeypatch.setattr(type(model.model), "memory_required", lambda self, input_shape, **_: float(input_shape[0]))
        monkeypatch.setattr(
            management,
            "get_free_memory",
            lambda dev=None, torch_free_too=False: ask(dev, True) if torch_free_too else 1.75 * rows,
        )

    return limit


@pytest.fixture
def room(engine, monkeypatch):
    """room(model): from now on, a list of how many rows each run of the engine makes room for."""

    def watch(model):
        if not hasattr(model, "add_wrapper_with_key"):
            pytest.skip("this engine can't be told how many rows a run has")
        management, asked = engine.get("model_management"), []
        load = management.load_models_gpu

        def noted(models, memory_required=0, *more, **named):
            asked.append(memory_required)
            return load(models, memory_required, *more, **named)

        monkeypatch.setattr(type(model.model), "memory_required", lambda self, input_shape, **_: input_shape[0])
        monkeypatch.setattr(management, "load_models_gpu", noted)
        return asked

    return watch


@pytest.fixture
def euler(engine, ends):
    """euler(model, latent, cfg): the picture by the run that a node with a whole sampler in it makes."""
    from nulltext.engine.sampler import core_sampler, sample_latent

    def run(model, latent, cfg=5.0, steps=8, sigmas=None, seed=3, ends=ends, mask=None):
        sigmas = engine.sigmas_of(model, "normal", steps) if sigmas is None else sigmas
        with torch.inference_mode():
            return sample_latent(model, *ends, cfg, core_sampler("euler"), sigmas, {"samples": latent}, seed, mask)[
                "samples"
            ]

    return run


@pytest.fixture
def family_lab(engine, tmp_path):
    """family_lab(family, **options) -> a `Lab` of `make families` in this process; what it writes is removed."""
    from nulltext.benchmarks.families.inside import Inside
    from nulltext.engine.folders import folder

    models = Path(engine.get("folder_paths").get_folder_paths("checkpoints")[0]).parent
    files = lambda: {path for top in (models, folder("output")) for path in top.rglob("*") if path.is_file()}
    there = files()
    yield lambda family, **options: Inside(family, tmp_path, **{"size": 8, **options})
    for path in files() - there:  # what was trained would stand in the lists of other tests' boxes
        path.unlink()


@pytest.fixture
def narrow(monkeypatch):
    """narrow(sizes): from here on SD1.5's stand-in of `make families` has these, for time."""
    from nulltext.benchmarks.families import stand_ins

    kind, config, _ = stand_ins.FAMILIES["SD1.5"]
    return lambda sizes: monkeypatch.setitem(stand_ins.FAMILIES, "SD1.5", (kind, config | sizes, {}))


@pytest.fixture
def network_calls():
    """network_calls(model): from now on, a list of (x, timesteps) that the diffusion network is asked for."""
    hooks = []

    def watch(model):
        seen = []
        net = model.model.diffusion_model
        hooks.append(
            net.register_forward_pre_hook(lambda module, args: seen.append((args[0].clone(), args[1].clone())))
        )
        return seen

    yield watch
    for hook in hooks:
        hook.remove()
