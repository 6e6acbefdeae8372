"""The image tower that is trained against attacks: the attack, the training, the file."""

import torch
from nulltext.demo import image_text, robust_image_text
from nulltext.demo.image_text import IMAGE, NOISY, TEXT, WORDS
from nulltext.demo.robust_image_text import agreement, attacked, distance, hardened
from nulltext.samplers.networks.image_text import ImageText
from safetensors import safe_open
from torch import nn


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def tiny():
    torch.manual_seed(0)
    return ImageText(WORDS, IMAGE, TEXT, NOISY).eval().requires_grad_(False)


def test_an_attack_goes_as_far_as_it_may_where_the_answer_is_known():
    """f(x) = sum of the signed picture: the farthest picture in reach moves every value by epsilon, towards one side or
    the other, and never leaves 0..1."""
    signs = torch.where(torch.rand(3, 8, 8, generator=generator()) < 0.5, -1.0, 1.0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 1, bias=False))
    net[1].weight.data = signs.flatten()[None]
    image = torch.rand(4, 3, 8, 8, generator=generator(1)) * 0.8 + 0.1
    image[0, :, 0] = torch.tensor([0.0, 1.0]).repeat(3, 4)
    wanted = net(2 * image - 1).detach()
    worst = attacked(net, image, wanted, generator(2), 0.05)
    moved = worst - image
    assert float(worst.min()) >= 0 and float(worst.max()) <= 1
    assert float(moved.abs().max()) <= 0.05 + 1e-6
    free = moved[1:]
    side = (free * signs).mean((1, 2, 3)).sign()[:, None, None, None]
    torch.testing.assert_close(free, 0.05 * signs * side)
    assert distance(net, worst, wanted) > 100 * distance(net, image + 1e-3, wanted)


def test_training_holds_the_tower_where_attacks_moved_it(tmp_path):
    model = tiny()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    trained = hardened(model, 0.1, 8, torch.device("cpu"), 0.05, tmp_path)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert agreement(trained, model, 0.05, 16) > agreement(model.image, model, 0.05, 16) + 0.01


def test_the_file_holds_the_new_image_tower_and_no_noise_aware_one(tmp_path, monkeypatch):
    model = tiny()
    out, other = tmp_path / "out.safetensors", tiny().image
    other.stem.weight.data.add_(1)
    minutes = []
    image_text.export(model, tmp_path / "shipped.safetensors", {})
    monkeypatch.setattr(robust_image_text, "SHIPPED", tmp_path / "shipped.safetensors")
    monkeypatch.setattr(robust_image_text, "hardened", lambda _, time, *_rest: minutes.append(time) or other)
    monkeypatch.setattr(robust_image_text, "agreement", lambda *_: 0.5)
    sample = image_text.scenes.sample
    monkeypatch.setattr(image_text.scenes, "sample", lambda n, *rest, **more: sample(min(n, 8), *rest, **more))
    arguments = ["--device", "cpu", "--out", str(out), "--epsilon", "0.03", "--minutes", "8"]
    monkeypatch.setattr("sys.argv", ["robust_image_text", *arguments])
    robust_image_text.main()
    assert minutes == [8]
    with safe_open(out, "pt") as file:
        state, notes = {k: file.get_tensor(k) for k in file.keys()}, file.metadata()  # noqa: SIM118
    made = ImageText.build(state, notes)
    assert made.noisy is None and notes["epsilon"] == "0.03" and notes["agreement_attacked"] == "0.5000"
    torch.testing.assert_close(made.image.stem.weight, other.stem.weight, atol=1e-3, rtol=1e-3)
    rows = model.rows(["a red circle"])
    torch.testing.assert_close(made.text(rows), model.text(rows), atol=1e-2, rtol=1e-2)
