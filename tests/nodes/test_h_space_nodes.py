"""The h-space boxes on a small random model: what they refuse, that they edit, that files bring directions back."""

import uuid

import pytest
import torch
from nulltext.engine import run
from nulltext.engine.guider import null_text_guider
from nulltext.engine.pair_guider import prompt_to_prompt_guider
from nulltext.engine.sampler import own_sampler, sample_latent
from nulltext.nodes import asyrp, h_map, h_space, h_space_files
from nulltext.nodes.disturbance import PICTURE
from nulltext.samplers.ode import sample_euler
from nulltext.tests.running import noised_inversion, sample
from nulltext.tests.running import run as node

EMPTY = {"samples": torch.zeros(1, 4, 8, 8)}


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


def made(model, positive, latent=EMPTY, way=h_space.COMPONENT, steps=4, samples=3, component=1, site=0, seed=5, **more):
    return h_space.HSpaceDirection().run(
        model, positive, latent, way, steps, "normal", samples, component, site, seed, **more
    )["result"][0]


def sampler(
    model, direction, strength=1.0, t_edit=0.0, t_boost=0.0, way=asyrp.ASYMMETRIC, calls=asyrp.ONE_CALL, **more
):
    return asyrp.AsyrpSampler().run(model, direction, strength, way, t_edit, t_boost, True, True, calls, **more)[
        "result"
    ]


def sampled(model, ends, latent, parts):
    return sample_latent(model, *ends, 3.0, parts[0], parts[1], {"samples": latent}, 3)["samples"]


def test_equal_prompts_and_equal_pictures_have_no_direction(tiny, ends, latent):
    for d in (
        made(tiny, ends[0], way=h_space.PROMPTS, target=ends[0]),
        made(tiny, ends[0], {"samples": latent}, h_space.PICTURES, target_latent={"samples": latent}),
    ):
        assert torch.equal(d.shifts, torch.zeros_like(d.shifts)) and d.shifts.shape == (4, 64, 4, 4)
    d = made(tiny, ends[0], way=h_space.PROMPTS, target=ends[1])
    back = made(tiny, ends[1], way=h_space.PROMPTS, target=ends[0])
    assert float(d.shifts.norm()) > 1 and torch.allclose(d.shifts, -back.shifts, atol=1e-4)


def test_a_set_of_pictures_is_the_mean_of_its_pictures_and_the_bar_ends_full(tiny, ends, latent, monkeypatch):
    """More pictures than stand in one call; the sets may differ in number."""
    many, bars, kept = torch.cat([latent] * 5), [], run.Progress
    monkeypatch.setattr(run, "Progress", lambda *a: bars.append(kept(*a)) or bars[-1])
    calls = []
    tiny.model.diffusion_model.register_forward_pre_hook(lambda m, args: calls.append(1))
    d = made(tiny, ends[0], {"samples": many}, h_space.PICTURES, target_latent={"samples": latent.flip(0) * 2})
    assert d.shifts.shape == (4, 64, 4, 4) and float(d.shifts.norm()) > 1
    assert [bar.value for bar in bars] == [bar.total for bar in bars] == [len(calls)] == [4 * (2 + 1)]


def test_components_come_in_order_and_are_reproducible(tiny, ends):
    first, second = made(tiny, ends[0]), made(tiny, ends[0], component=2)
    assert float(first.shifts.norm()) > float(second.shifts.norm()) > 0
    assert float((first.shifts * second.shifts).sum().abs()) < 1e-2 * float(first.shifts.square().sum())
    assert torch.equal(first.shifts, made(tiny, ends[0]).shifts)
    assert not torch.allclose(first.shifts, made(tiny, ends[0], seed=6).shifts)


def test_the_sampler_edits_and_at_strength_0_is_euler(tiny, ends, latent):
    d = made(tiny, ends[0])
    parts = sampler(tiny, d, 0.0)
    euler = sampled(tiny, ends, latent, (own_sampler(sample_euler), parts[1]))
    assert torch.equal(sampled(tiny, ends, latent, parts), euler)
    edits = [sampled(tiny, ends, latent, sampler(tiny, d, s)) for s in (0.5, 1.0, -1.0)]
    far = [float((e - euler).norm()) for e in edits]
    assert 0 < far[0] < far[1] and float(((edits[1] - euler) * (edits[2] - euler)).sum()) < 0
    for changed in (
        sampler(tiny, d, way=asyrp.SYMMETRIC),
        sampler(tiny, d, t_edit=0.6),
        sampler(tiny, d, t_boost=0.5),
        sampler(tiny, d, direction_2=d, strength_2=1.0),
    ):
        assert not torch.allclose(sampled(tiny, ends, latent, changed), edits[1], rtol=1e-3)
    none = sampler(tiny, d, t_edit=1.0)  # a window that holds its first level alone
    assert not torch.allclose(sampled(tiny, ends, latent, none), edits[1], rtol=1e-3)


def test_strength_0_is_said_to_be_euler_only_where_nothing_boosts(tiny, ends, latent):
    d = made(tiny, ends[0], steps=12)
    as_opened, unboosted = (
        node("AsyrpSampler", model=tiny, direction=d, strength=0.0, **more) for more in ({}, {"t_boost": 0.0})
    )
    euler, *both = (
        sampled(tiny, ends, latent, (kind, d.sigmas))
        for kind in (own_sampler(sample_euler), as_opened[0], unboosted[0])
    )
    assert [torch.equal(x, euler) for x in both] == ["plain Euler" in out.text for out in (as_opened, unboosted)]
    assert torch.equal(both[1], euler) and "t_boost still adds noise" in as_opened.text


def test_a_run_below_what_a_direction_acts_on_is_told_to_edit_nothing(tiny, ends, latent):
    d = made(tiny, ends[0], steps=12)
    picture = {"samples": latent}
    low = node("InvertImage", model=tiny, positive=ends[0], latent=picture, steps=8, depth=0.5, use_cache=False)[0]
    as_opened = node("AsyrpSampler", model=tiny, direction=d, inversion=low)
    assert "nothing is edited" in as_opened.text
    for more in ({"t_edit": 0.0}, {"inversion": None}, {"strength": 0.0}):
        made_by = {"model": tiny, "direction": d, "inversion": low} | more
        assert "whole run lies below" not in node("AsyrpSampler", **made_by).text


@pytest.mark.parametrize("changed", [{"null_branch": False}, {"rescale": False}, {"direction_3": 1.0}])
def test_every_dial_reaches_the_sampler(tiny, ends, latent, changed):
    d = made(tiny, ends[0], steps=8)
    changed = {k: made(tiny, ends[0], component=2, steps=8) if k == "direction_3" else v for k, v in changed.items()}
    given = {"model": tiny, "direction": d, "t_edit": 0.0, "t_boost": 0.0}
    sigmas = made(tiny, ends[0]).sigmas  # fewer steps than the direction's
    as_opened, other = (
        sampled(tiny, ends, latent, (node("AsyrpSampler", **given, **own)[0], sigmas)) for own in ({}, changed)
    )
    assert not torch.allclose(as_opened, other, rtol=1e-3)


def test_a_later_site_has_its_own_h_and_is_edited_there(tiny, ends, latent):
    d = made(tiny, ends[0], site=2)
    assert d.site == 2 and d.shifts.shape == (4, 64, 8, 8)
    parts = sampler(tiny, d)
    assert not torch.allclose(sampled(tiny, ends, latent, parts), sampled(tiny, ends, latent, sampler(tiny, d, 0.0)))


def test_h_is_read_under_one_prompt_alone(tiny, make_condition, ends):
    """Of several only the last would be read, and of texts for each picture a wrong one."""
    single = make_condition()
    text = single[0][0]
    several = {
        "combined": single + make_condition(),
        "regional": [[text, {**single[0][1], "area": (4, 4, 0, 0)}]],
        "a batch": [[text.repeat(2, 1, 1), {}]],
        "part of the steps": [[text, {"end_percent": 0.5}]],
    }
    two = {"samples": EMPTY["samples"].repeat(2, 1, 1, 1)}
    assert made(tiny, single, two, way=h_space.PROMPTS, target=ends[1]).shifts.any()
    for says, prompt in several.items():
        with pytest.raises(ValueError, match=f"positive prompt .*{says}"):
            made(tiny, prompt, two, way=h_space.PROMPTS, target=ends[1])
        with pytest.raises(ValueError, match=f"target prompt .*{says}"):
            made(tiny, single, two, way=h_space.PROMPTS, target=prompt)


def test_what_has_no_defined_result_is_refused(tiny, make_model, ends, latent):
    d = made(tiny, ends[0])
    with pytest.raises(ValueError, match="another|made with"):
        sampler(make_model("V_PREDICTION"), d)
    with pytest.raises(ValueError, match="wire target"):
        made(tiny, ends[0], way=h_space.PROMPTS)
    with pytest.raises(ValueError, match="needs both"):
        made(tiny, ends[0], {"samples": latent}, h_space.PICTURES, target_latent=EMPTY)
    with pytest.raises(ValueError, match="different sizes"):
        made(tiny, ends[0], {"samples": latent}, h_space.PICTURES, target_latent={"samples": latent[..., :4]})
    with pytest.raises(ValueError, match="components"):
        made(tiny, ends[0], component=3)
    with pytest.raises(ValueError, match="sites"):
        made(tiny, ends[0], site=9)


def test_a_saved_direction_edits_to_the_bit(tiny, make_model, ends, latent):
    d = made(tiny, ends[0])
    name = f"directions_{uuid.uuid4().hex}/way"
    save, load = h_space_files.SaveDirection(), h_space_files.LoadDirection()
    assert save.run(d, name, True)["result"] == (f"{name}.safetensors",)
    assert save.run(d, name, False)["result"] == (f"{name}_001.safetensors",)
    back = load.run(name, tiny)["result"][0]
    assert torch.equal(sampled(tiny, ends, latent, sampler(tiny, back)), sampled(tiny, ends, latent, sampler(tiny, d)))
    with pytest.raises(ValueError, match="direction"):
        load.run(name, make_model("FLOW"))
    with pytest.raises(ValueError, match="Save h-Space Direction"):
        load.run(name + "_other")
    with pytest.raises(ValueError, match=r"\.\."):
        save.run(d, "../out", True)
    assert load.IS_CHANGED(name) != load.IS_CHANGED(name + "_other")


def test_a_second_direction_of_a_name_is_kept_beside_the_first_and_told(tiny, ends):
    name = f"directions_{uuid.uuid4().hex}/way"
    first, second = (node("SaveDirection", direction=made(tiny, ends[0]), name=name) for _ in range(2))
    assert (first[0], second[0]) == (f"{name}.safetensors", f"{name}_001.safetensors")
    assert second.text.endswith(f"the name {name} was taken: load this one as {name}_001.")


class Tower(torch.nn.Module):
    image_size = 8

    def embed_image(self, pictures):
        return torch.nn.functional.one_hot((pictures.mean((1, 2, 3)) > 0.5).long(), 2).float()

    def embed_text(self, texts):
        return torch.tensor([[1.0, 0.0] if t == "dark" else [0.0, 1.0] for t in texts])

    def unknown(self, text):
        return []


def test_the_map_has_a_column_for_each_strength(tiny, ends, latent):
    d = made(tiny, ends[0])

    class Vae:
        def decode(self, samples):
            return (samples[:, :3] * 0 + 0.2 + 0.6 * (samples[:, :1] == samples[:, :1])).movedim(1, -1)

    def run(strengths, attributes):
        return h_map.HSpaceMap().run(
            tiny, *ends, Vae(), d, Tower(), {"samples": latent}, 3, 1.0, 4, "normal", 0.0, strengths, attributes
        )

    made_map = run("0, 1, 2", "dark | light")
    strip, table, images = made_map["result"]
    (panel,) = made_map["ui"]["nulltext_strengths"]
    assert panel["strengths"] == [0, 1, 2] and len(panel["images"]) == 6
    assert [(line["text"], line["shares"]) for line in panel["read"]] == [
        ("dark", pytest.approx([0] * 3, abs=0.01)),
        ("light", pytest.approx([1] * 3, abs=0.01)),
    ]
    assert images.shape == (6, 8, 8, 3) and strip.shape[2] == 24
    assert [line.split() for line in table.splitlines()[1:]] == [["dark"] + ["0.00"] * 3, ["light"] + ["1.00"] * 3]
    with pytest.raises(ValueError, match="strengths"):
        run("0, x", "dark | light")
    with pytest.raises(ValueError, match="two values"):
        run("0", "dark")


@pytest.mark.parametrize("beside", ["rollback", "picture", "ILVR", "Null-Text Guider"])
def test_one_call_of_two_rows_is_two_calls_beside_what_counts_rows(tiny, ends, latent, beside):
    """Each node holds something for each of the two pictures; t_edit 0.6 asks for them once in the last steps."""
    d, reference = made(tiny, ends[0], steps=8), {"samples": latent.flip(0)}
    inversion = noised_inversion(tiny, latent, 8)
    model = {
        "rollback": lambda: node("Disturbance", model=tiny, cfg=3.0, start_percent=0.3)[0],
        "picture": lambda: node("Disturbance", model=tiny, look=PICTURE, picture=reference, start_percent=0.3)[0],
        "ILVR": lambda: node("ILVR", model=tiny, reference=reference, factor=2.0)[0],
        "Null-Text Guider": lambda: tiny,
    }[beside]()
    embeddings = torch.cat([ends[1][0][0], -ends[1][0][0]]).expand(8, -1, -1, -1)
    inversion = inversion.replace(null_embeddings=embeddings, correction="null_text", cfg=3.0)

    def edited(calls):
        parts = sampler(model, d, t_edit=0.6, calls=calls)
        if beside != "Null-Text Guider":
            return sampled(model, ends, latent, parts)
        guider = null_text_guider(model, inversion, *ends, 3.0)
        return sample(guider, torch.zeros_like(latent), inversion.sigmas, latent, parts[0])

    torch.testing.assert_close(edited(asyrp.ONE_CALL), edited(asyrp.TWO_CALLS), rtol=1e-3, atol=1e-3)


def test_prompt_to_prompt_asks_for_two_calls(tiny, ends, make_condition, latent):
    guider = prompt_to_prompt_guider(tiny, ends[0], [make_condition(4)], ends[1], 3.0, [])
    parts = sampler(tiny, made(tiny, ends[0]))
    with pytest.raises(ValueError, match="8 rows in one call, and .* Prompt-to-Prompt has 4: .* two calls"):
        sample(guider, latent, parts[1], sampler=parts[0])
