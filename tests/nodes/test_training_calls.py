"""README's table of what trainings ask the network, counted on a small random checkpoint."""

import pytest
import torch
from nulltext.engine import comfy as bridge
from nulltext.engine import files
from nulltext.nodes import controlnet, h_training
from nulltext.tests import stand_ins
from nulltext.tests.nodes.test_calls import readme_table, value
from nulltext.tests.nodes.text_pair import Tower
from nulltext.tests.running import run

pytestmark = pytest.mark.usefixtures("inference", "own_folders")

HEADER = "| training | how | calls | rows | calls with a backward pass |"
#: the numbers that the formulas' words stand for here
NUMBERS = {"N": 3, "batch": 2, "pictures": 2, "passes": 2, "inversion": 3, "train": 2}
NUMBERS |= {"embedding": 3, "model": 2, "steps": 4, "levels": 3, "accumulate": 2}
STEPS, BATCH = NUMBERS["N"], NUMBERS["batch"]


@pytest.fixture(scope="module")
def parts(engine, tmp_path_factory):
    return stand_ins.demo_parts(engine, tmp_path_factory.mktemp("checkpoints"), seed=1)


@pytest.fixture(autouse=True)
def no_inversion_kept(monkeypatch):
    monkeypatch.setattr(files, "cache_key", lambda *_: None)


@pytest.fixture
def runs(parts):
    """(training, how) -> what runs it."""
    model, clip, vae = parts.model, parts.clip, parts.vae
    images = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(3))
    subject = run("TuningPictures", vae=vae, images=images, captions="a photo of a sks circle", size=64)[0]
    prior = run("TuningPictures", vae=vae, images=images.flip(0), captions="a photo of a circle", size=64)[0]
    latents = {"samples": vae.encode(images)}
    empty, target = bridge.encode(clip, ""), bridge.encode(clip, "a photo of a circle on the right")
    taught = {"model": model, "clip": clip, "pictures": subject, "steps": STEPS, "batch": BATCH, "sample_every": 0}
    texts = {"positive": empty, "latent": latents, "vae": vae, "image_text": Tower(), "source": "blue"}
    texts |= {"model": model, "target": "red", "passes": NUMBERS["passes"]}

    def lora(**more):
        run("TrainLora", **taught, rank=2, targets="attention", **more)

    def imagic():
        given = {"model": model, "target": target, "negative": empty, "latent": {"samples": latents["samples"][:1]}}
        given |= {"embedding_steps": NUMBERS["embedding"], "model_steps": NUMBERS["model"], "rank": 2, "batch": BATCH}
        run("ImagicOptimise", **given, sample_every=0)

    def control():
        net = run("MakeControlNet", model=model, rank=4, form=controlnet.SMALL)[0]
        more = {"hints": run("HintMaker", image=images)[0], "accumulate": NUMBERS["accumulate"]}
        run("TrainControlNet", **taught, control_net=net, **more)

    return {
        ("Train LoRA", ""): lora,
        ("Train LoRA", "class pictures wired"): lambda: lora(prior=prior),
        ("Train LoRA", "preset UniTune code, which sums 4 batches"): lambda: lora(preset="UniTune code"),
        ("Train Embedding", ""): lambda: run("TrainEmbedding", **taught, file_name="sks"),
        ("Imagic Optimise", "embedding, then model"): imagic,
        ("DiffusionCLIP Tune", "up to 8 pictures, passes"): lambda: run(
            "DiffusionCLIPTune", **texts, inversion_steps=NUMBERS["inversion"], train_steps=NUMBERS["train"], rank=2
        ),
        ("h-Space Train", "up to 8 pictures, passes, levels above t_edit"): lambda: run(
            "HSpaceTrain", **texts, what=h_training.FREE, steps=NUMBERS["steps"], t_edit=0.01
        ),
        ("Train ControlNet", ""): control,
    }


@pytest.mark.parametrize("row", readme_table(HEADER), ids=lambda row: " ".join(row[:2]).strip())
def test_a_row_of_the_table_is_what_a_training_asks(parts, runs, row):
    training, how, *formulas = row
    seen = []

    def watch(_net, given, made):
        if not made.is_meta:  # what tells the memory before the start computes nothing
            seen.append((len(given[0]), made.requires_grad))

    hook = parts.model.model.diffusion_model.register_forward_hook(watch)
    try:
        runs[training, how]()
    finally:
        hook.remove()
    found = len(seen), sum(rows for rows, _ in seen), sum(differentiated for _, differentiated in seen)
    assert found == tuple(value(formula, NUMBERS) for formula in formulas)
