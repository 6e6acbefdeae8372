import pytest
import torch
from nulltext.demo import captions, nets, probe, scenes
from nulltext.demo.autoencoder import DECODER_SIZE, SLIM_SIZE, AutoEncoder, grown, narrow, widened
from nulltext.demo.model import denoiser, schedule
from nulltext.demo.train import map_loss
from nulltext.samplers.core import to_d


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_same_seed_draws_the_same_scene():
    a, b = (scenes.draw(scenes.sample(3, seeded(5)))[0] for _ in range(2))
    assert torch.equal(a, b)
    assert not torch.equal(a, scenes.draw(scenes.sample(3, seeded(6)))[0])


def test_splits_are_disjoint():
    train, held = scenes.sample(400, seeded(1)), scenes.sample(100, seeded(2), "held_out")
    assert not scenes.held_out(train).any()
    assert scenes.held_out(held).all()
    assert not scenes.unseen_pair(held).any()
    unseen = scenes.sample(40, seeded(3), "unseen")
    assert scenes.unseen_pair(unseen).all()
    assert (unseen.count == 1).all()


def test_an_object_never_has_the_background_s_colour():
    s = scenes.sample(500, seeded(4), "any")
    assert (s.colour[:, 0] != s.background).all()
    assert ((s.colour[:, 1] != s.background) | (s.count == 1)).all()


def test_a_colour_change_touches_the_object_alone():
    s = scenes.sample(8, seeded(7), two=0.0)
    other = s.changed("colour", (s.colour[:, 0] + 1) % len(scenes.COLOURS))
    mask = scenes.draw(s)[1][:, 0]
    assert scenes.difference(s, other).any()
    assert not scenes.difference(s, other)[mask == 0].any()
    assert torch.equal(s.nuisance, other.nuisance)


def test_mask_covers_the_place_it_names():
    s = scenes.sample(64, seeded(8), two=0.0)
    mask = scenes.draw(s, 64)[1][:, 0]
    grid = (torch.arange(64) + 0.5) / 64
    x = (mask.sum(1) * grid).sum(1) / mask.sum((1, 2))
    left, right = (s.place[:, 0] == scenes.PLACES.index(p) for p in ("left", "right"))
    assert (x[left] < 0.4).all()
    assert (x[right] > 0.6).all()


def test_captions_and_rows_agree_with_the_real_tokenizer():
    transformers = pytest.importorskip("transformers")
    from importlib.util import find_spec
    from pathlib import Path

    folder = Path(find_spec("comfy").origin).parent / "sd1_tokenizer"
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    s = scenes.sample(200, seeded(9))
    for generator in (None, seeded(10)):
        phrases = captions.phrases(s, generator)
        rows, words = captions.token_rows(*phrases)
        ids = torch.tensor(captions.VOCABULARY)[rows]
        for i, text in enumerate(captions.text(*phrases)):
            expected = tokenizer(text)["input_ids"]
            assert ids[i, : len(expected)].tolist() == expected, text
            assert (ids[i, len(expected) :] == captions.EOS).all()
        for i in (0, 50):  # the named token is the colour's own
            colour = captions.tokens_of(scenes.COLOURS[s.colour[i, 0]])
            if generator is None:
                assert int(ids[i, words[i, 0, 0]]) == colour[-1]


def test_a_slim_autoencoder_written_wide_computes_the_same():
    torch.manual_seed(0)
    slim, wide = AutoEncoder(SLIM_SIZE), AutoEncoder()
    for p in slim.parameters():
        torch.nn.init.normal_(p, std=0.08)
    wide.load_state_dict(widened(slim.state_dict()))
    image = torch.rand(1, 3, 32, 32)
    latent = slim.encode(image)
    assert latent.abs().max() > 1e-3
    for a, b in ((wide.encode(image), latent), (wide.decode(latent), slim.decode(latent))):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()
    back = narrow(wide.state_dict()).state_dict()
    assert all(torch.equal(back[k], v) for k, v in slim.state_dict().items())
    whole = AutoEncoder().state_dict()
    back = narrow(whole).state_dict()
    assert all(torch.equal(back[k], v) for k, v in whole.items())


def test_a_grown_decoder_computes_the_same_and_every_new_weight_can_learn():
    torch.manual_seed(0)
    slim = AutoEncoder(SLIM_SIZE)
    for p in slim.parameters():
        torch.nn.init.normal_(p, std=0.08)
    wide, latent = grown(slim), torch.randn(2, 4, 4, 4)
    out = slim.decode(latent)
    assert (wide.decode(latent) - out).abs().max() <= 1e-5 * out.abs().max()
    assert narrow(widened(wide.state_dict())).decoder_size == DECODER_SIZE
    optimiser = torch.optim.SGD(wide.parameters(), lr=1e-2)
    for _ in range(3):  # what reads a new channel starts at 0, so the channel itself learns from the second step on
        optimiser.zero_grad()
        (wide.decode(latent) - 1).square().mean().backward()
        optimiser.step()
    idle = [k for k, p in wide.taesd_decoder.named_parameters() if not p.grad.flatten(1 if p.ndim > 1 else 0).any()]
    assert not idle


def test_objects_are_painted_in_any_colour():
    """`paint` sets the objects' colour; with the named colours' own RGB the drawing is the same."""
    s = scenes.sample(8, torch.Generator().manual_seed(3))
    table = torch.tensor([scenes.RGB[c] for c in scenes.COLOURS])
    image, mask = scenes.draw(s)
    assert torch.equal(scenes.draw(s, paint=table[s.colour])[0], image)
    cyan = torch.tensor(scenes.UNSEEN_COLOURS["cyan"]).expand(8, 2, 3)
    painted = scenes.draw(s, paint=cyan)[0]
    inside = mask.amax(1, keepdim=True).expand_as(image)
    assert torch.equal(painted[inside == 0], image[inside == 0])
    assert (painted - image).abs().mul(inside).sum() > 100


def test_denoiser_turns_v_into_the_clean_latent():
    """A net that answers the true v of a known pair gives back the clean latent, and d is the noise."""
    table = nets.sigmas()
    x0, noise = torch.randn(2, 4, 4, 4), torch.randn(2, 4, 4, 4)
    s = table[400]
    a = (1 + s * s).rsqrt()
    denoise = denoiser(lambda x, t, context: a * noise - s * a * x0, None, table)
    x = x0 + s * noise
    assert torch.allclose(denoise(x, s), x0, atol=1e-4)
    assert torch.allclose(to_d(x, s, denoise(x, s)), noise, atol=1e-4)


def test_schedule_falls_from_the_noisiest_level_to_zero():
    sigmas = schedule(30, nets.sigmas())
    assert len(sigmas) == 31
    assert sigmas[-1] == 0
    assert sigmas[0] == nets.sigmas()[-1]
    assert (sigmas.diff() < 0).all()


def test_map_loss_falls_when_the_word_looks_at_its_object():
    mask = torch.zeros(1, 2, 16, 16)
    mask[:, 0, 4:8, 4:8] = 1
    words = torch.zeros(1, 2, 2, dtype=torch.long)
    words[0, 0] = torch.tensor([3, 4])
    inside, outside = torch.full((1, 256, 77), 1e-3), torch.full((1, 256, 77), 1e-3)
    inside[:, mask[0, 0].flatten() > 0, 3:5] = 0.5
    outside[:, mask[0, 0].flatten() == 0, 3:5] = 0.5
    losses = [float(map_loss({"a": m}, words, mask, torch.ones(1))) for m in (inside, outside)]
    assert losses[0] < 0.1 < losses[1]


@pytest.mark.parametrize("name", ["conv", "query", "features"])
def test_probe_loss_is_least_at_the_truth(name):
    s = scenes.sample(4, seeded(11))
    net = probe.all_nets()[name]
    out = net(scenes.draw(s)[0])
    logits = {k: torch.zeros_like(v) for k, v in probe.split_logits(out).items()}
    wrong = float(probe.loss(logits, s))
    for b in range(4):
        logits["present"][b, :, 0] = 9
        for i in range(int(s.count[b])):
            place = s.place[b, i]
            logits["present"][b, place] = torch.tensor([0.0, 9.0])
            for kind in ("colour", "shape", "size"):
                logits[kind][b, place, getattr(s, kind)[b, i]] = 9
        for kind in ("background", "texture", "style"):
            logits[kind][b, getattr(s, kind)[b]] = 9
    assert float(probe.loss(logits, s)) < 0.05 * wrong
