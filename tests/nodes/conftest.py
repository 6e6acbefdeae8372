"""What edits a picture inside a mask, by name, with few steps."""

import pytest
import torch
from nulltext.benchmarks.families import stand_ins
from nulltext.engine import folders, training_store, tuning_set
from nulltext.nodes import edit_grid, repaint
from nulltext.tests.running import CLIP, Out, Pixels, noised_inversion, run

CELLS = torch.zeros(8, 8, dtype=torch.bool)
CELLS[2:6, 2:5] = True


@pytest.fixture
def inside():
    """[8, 8], the latent cells to change."""
    return CELLS


@pytest.fixture
def mask():
    """[1, 64, 64], the same cells in pixels."""
    return CELLS.float().repeat_interleave(8, 0).repeat_interleave(8, 1)[None]


@pytest.fixture
def own_folders(engine, tmp_path, monkeypatch):
    """Folders of this test alone: for files, and for kept trainings, pictures and inversions."""
    paths = engine.get("folder_paths")
    monkeypatch.setattr(paths, "get_folder_paths", lambda kind: [str(tmp_path / kind)])
    monkeypatch.setattr(paths, "get_full_path", lambda kind, name: str(tmp_path / kind / name))

    def cache(kind="inversions"):
        (tmp_path / "user" / kind).mkdir(parents=True, exist_ok=True)
        return tmp_path / "user" / kind

    for module in (training_store, tuning_set):
        monkeypatch.setattr(module, "cache_folder", cache)
    monkeypatch.setattr(folders, "folder", cache)
    return tmp_path


@pytest.fixture
def edits(ends, monkeypatch):
    """By name, edit(model, latent [B, C, h, w], mask, **inputs) -> Out of each node that edits inside a mask."""

    def edit(name, **values):
        def made(model, latent, mask, **inputs):
            given = {"latent": latent, "cfg": 3.0, **values, **inputs, "mask": mask}
            return run(name, model=model, positive=ends[0], negative=ends[1], **given)

        return made

    def inverted(model, latent, mask, record=None, **inputs):
        inversion = noised_inversion(model, latent, **(record or {}))
        more = {"inversion": inversion, "mask": mask, "cfg": 3.0, **inputs}
        return run("DiffEdit", model=model, positive=ends[0], negative=ends[1], **more)

    def direct(model, latent, mask, **inputs):
        given = {"steps": 5, "strength": 1.0, "source_cfg": 1.0, "target_cfg": 1.0, **inputs, "mask": mask}
        return run("DirectEdit", model=model, source=ends[0], target=ends[1], latent=latent, **given)

    def sampled(model, latent, mask, record=None, **inputs):
        given = {"strength": 1.0, "target_cfg": 3.0, **inputs, "mask": mask}
        given["inversion"] = noised_inversion(model, latent, **(record or {}))
        return run("Sampler", model=model, positive=ends[0], negative=ends[1], **given)

    def grid(model, latent, mask, record=None, **inputs):
        inversion = noised_inversion(model, latent, **(record or {}))
        given = {"prompts": "a cat", "strengths": "1", "target_cfg": 3.0, **inputs, "mask": mask}
        made = run("EditGrid", model=model, clip=CLIP, vae=Pixels(), inversion=inversion, negative=ends[1], **given)
        out = Out(made[2:])
        out.text = made.text
        return out

    monkeypatch.setattr(edit_grid, "worded", lambda clip, text: ends[0])
    numbers = {"schedule": repaint.CUSTOM, "levels": 5, "jump": 1, "resamples": 3, "low": 0.0, "high": 2.0}
    return {
        "repaint": edit("RePaintSampler", seed=7, noise=repaint.RENEWED, particles=3, grow=0, **numbers),
        "sdedit": edit("SDEdit", seed=1, t0=0.6, steps=5),
        "diffedit": inverted,
        "blended": edit("BlendedDiffusion", seed=2, steps=5),
        "direct": direct,
        "sampler": sampled,
        "grid": grid,
    }


@pytest.fixture
def family(engine, tmp_path, monkeypatch):
    """family(name, **changes) -> MODEL, the stand-in of a model family, its configuration changed."""
    monkeypatch.setattr(stand_ins.Model, "folder", str(tmp_path))

    def made(name, **changes):
        if name not in stand_ins.known():
            pytest.skip(f"this engine knows no {name}")
        kind, config, more = stand_ins.FAMILIES[name]
        monkeypatch.setitem(stand_ins.FAMILIES, name, (kind, config | changes, more))
        return stand_ins.Model().load(name, "float32")[0]

    return made


class Asked(Exception):
    """The network was asked."""


@pytest.fixture
def idle(tiny):
    """A model that raises `idle.asked` where its network is asked."""

    def refuse(*_, **__):
        raise Asked

    handle = tiny.model.diffusion_model.register_forward_pre_hook(refuse)
    tiny.asked = Asked
    yield tiny
    handle.remove()
