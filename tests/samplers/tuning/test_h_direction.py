"""Directions: their file, their levels, several at once, other step numbers, means and components."""

import math

import pytest
import torch
from nulltext.samplers import record_file
from nulltext.samplers.core import FLOW, gaussian
from nulltext.samplers.inversion.record import Inversion
from nulltext.samplers.ode import sample_euler
from nulltext.samplers.record_file import write
from nulltext.samplers.tuning import h_direction
from nulltext.samplers.tuning.h_direction import (
    DeltaBlock,
    Direction,
    free_shifts,
    h_of_pictures,
    h_of_walk,
    mean_difference,
    new_block,
    principal_components,
    relative_size,
    time_of,
    together,
)

SIGMAS = torch.tensor([8.0, 4.0, 2.0, 1.0, 0.0])


def shifts(seed=0, steps=4):
    return torch.randn(steps, 6, 2, 2, generator=torch.Generator().manual_seed(seed))


def direction(**changes):
    return Direction(**({"sigmas": SIGMAS, "shifts": shifts()} | changes))


def block(seed=1):
    net = new_block(8, seed)
    with torch.no_grad():
        net.out.weight.normal_(generator=torch.Generator().manual_seed(seed))
    return net


def network():
    return direction(shifts=None, block=block().state_dict())


def finer(steps):
    return torch.linspace(8, 0, steps + 1)


H = torch.randn(3, 6, 2, 2, generator=torch.Generator().manual_seed(5))


def test_a_step_takes_its_own_levels_shift_and_other_schedules_the_nearest():
    d = direction()
    for i, s in enumerate(SIGMAS[:-1]):
        assert torch.equal(d.at(s)(H), d.shifts[i])
    assert torch.equal(d.at(50.0)(H), d.shifts[0]) and torch.equal(d.at(0.01)(H), d.shifts[3])
    assert torch.equal(d.at(3.5)(H), d.shifts[1]) and torch.equal(d.at(2.5)(H), d.shifts[2])


def test_below_its_own_level_a_direction_does_nothing():
    d = direction(edit=2.0)
    assert d.at(2.0) is not None and d.at(1.9) is None and network().at(0.001) is not None


def test_several_are_summed_over_sqrt_n_and_taken_as_often_as_the_steps_are_fewer():
    a, b = direction(), direction(shifts=shifts(1))
    made = together([(a, 2.0), (b, -0.5)], finer(8))(4.0)(H)
    expected = (2.0 * a.shifts[1] - 0.5 * b.shifts[1]) * (4 / 8) / math.sqrt(2)
    assert torch.allclose(made, expected)
    assert torch.equal(together([(a, 1.0)], SIGMAS)(4.0)(H), a.shifts[1])
    assert torch.allclose(together([(a, 1.0)], finer(8), rescale=False)(4.0)(H), a.shifts[1])
    assert together([(a, 0.0)], SIGMAS)(4.0) is None
    assert together([(direction(edit=3.0), 1.0)], SIGMAS)(2.0) is None
    assert torch.allclose(together([(a, 1.0), (b, 0.0)], SIGMAS)(4.0)(H), a.shifts[1] / math.sqrt(2))


def test_a_part_of_its_own_schedule_is_not_rescaled():
    a = direction()
    for part in (SIGMAS[1:], SIGMAS[:3], SIGMAS[1:3]):
        assert torch.equal(together([(a, 1.0)], part)(part[0])(H), a.at(part[0])(H))


def test_rescaling_keeps_the_sum_of_the_jumps():
    """For one and the same shift at every level the asymmetric jumps of 4 and of 8 steps add up alike."""
    one = direction(shifts=torch.ones(4, 6, 2, 2))
    walk = finer(8)
    total = sum(together([(one, 1.0)], walk)(s)(H) for s in walk[:-1])
    assert torch.allclose(total, torch.full_like(total, 4.0))


def test_another_size_of_h_is_refused():
    with pytest.raises(ValueError, match="picture size"):
        direction().at(4.0)(torch.zeros(1, 6, 4, 4))


def test_the_network_is_the_authors_block():
    net, sigma = block(), torch.tensor(3.0)
    h = torch.randn(2, 8, 3, 5, generator=torch.Generator().manual_seed(3))
    e = net.embed(torch.cat(angles(time_of(sigma, "ve")), -1)[None])
    z = torch.nn.functional.conv2d(h, net.into.weight[:, :, None, None], net.into.bias)
    z = z + net.level(torch.nn.functional.silu(e))[:, :, None, None]
    z = torch.nn.functional.silu(net.norm(z))
    expected = torch.nn.functional.conv2d(z, net.out.weight[:, :, None, None], net.out.bias)
    assert torch.allclose(net(h, sigma, "ve"), expected, atol=1e-5)
    assert not torch.allclose(net(h, sigma, "ve"), net(h, 0.3, "ve"))  # the level is told


def angles(time, width=64):
    f = torch.tensor([10000.0 ** (-k / (width // 2)) for k in range(width // 2)])
    return (1000 * time * f).cos(), (1000 * time * f).sin()


def test_a_new_network_changes_nothing_and_does_not_touch_the_global_random_numbers():
    before = torch.random.get_rng_state()
    a, b, c = new_block(8, 1), new_block(8, 1), new_block(8, 2)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(a.into.weight, b.into.weight) and not torch.equal(a.into.weight, c.into.weight)
    assert torch.equal(a(torch.randn(1, 8, 2, 2), 2.0, "ve"), torch.zeros(1, 8, 2, 2))
    free = free_shifts(40, (8, 4, 4), 3)
    assert free.std() == pytest.approx(0.2, rel=0.02) and torch.equal(free, free_shifts(40, (8, 4, 4), 3))


def test_times_lie_between_0_and_1():
    assert float(time_of(1.0, "ve")) == pytest.approx(0.5) and float(time_of(1e9, "ve")) == pytest.approx(1)
    assert float(time_of(0.3, "flow")) == pytest.approx(0.3)


@pytest.mark.parametrize("make", [direction, network], ids=["steps", "block"])
def test_a_direction_comes_back_from_its_file(tmp_path, make):
    import dataclasses

    saved = dataclasses.replace(
        make(), site=2, edit=1.5, source="plain", target="striped", fingerprint={"a": "b"}, metadata={"n": 3}
    )
    saved.save(tmp_path / "d.safetensors")
    read = Direction.load(tmp_path / "d.safetensors")
    h = torch.randn(2, 8 if read.block else 6, 2, 2, generator=torch.Generator().manual_seed(3))
    assert torch.equal(read.at(4.0)(h), saved.at(4.0)(h)) and read.kind == saved.kind
    for name in ("site", "edit", "source", "target", "fingerprint", "metadata", "process"):
        assert getattr(read, name) == getattr(saved, name)
    assert not list(tmp_path.glob("*.part"))


def test_foreign_and_broken_files_are_refused(tmp_path):
    Inversion(SIGMAS, torch.zeros(5, 1, 4, 2, 2)).save(tmp_path / "i.safetensors")
    with pytest.raises(ValueError, match="not an h-space direction"):
        Direction.load(tmp_path / "i.safetensors")
    direction().save(tmp_path / "d.safetensors")
    content = (tmp_path / "d.safetensors").read_bytes()
    (tmp_path / "d.safetensors").write_bytes(content[:-9])
    with pytest.raises(ValueError, match="direction again"):
        Direction.load(tmp_path / "d.safetensors")
    with pytest.raises(FileNotFoundError):
        Direction.load(tmp_path / "none.safetensors")
    tensors, metadata = direction().to_tensors()
    with pytest.raises(ValueError, match="version 7"):
        Direction.from_tensors(tensors, {**metadata, "version": "7"})
    with pytest.raises(ValueError, match="content"):
        Direction.from_tensors({**tensors, "more": tensors["shifts"]}, metadata)


def test_parts_that_do_not_belong_together_are_refused():
    for changes, why in (
        ({"shifts": shifts(steps=3)}, "as many shifts"),
        ({"shifts": None}, "either"),
        ({"block": block().state_dict()}, "either"),
        ({"shifts": shifts() * float("nan")}, "NaN"),
        ({"process": "other"}, "process"),
        ({"sigmas": SIGMAS.flip(0)}, "fall"),
        ({"shifts": None, "block": {"out.bias": torch.zeros(8)}}, "network"),
    ):
        with pytest.raises(ValueError, match=why):
            direction(**changes)


def test_what_is_wrong_is_said_and_every_tensor_is_looked_at_once(tmp_path, monkeypatch):
    tensors, metadata = network().to_tensors()
    for changed, why in (
        ({"block.into.weight": torch.zeros(8, 9)}, r"into.weight has shape \[8, 9\]"),
        ({"block.out.weight": torch.full((8, 8), math.inf)}, "out.weight holds NaN or infinite"),
        ({"sigmas": SIGMAS.to(torch.complex64)}, "sigmas holds no numbers"),
        ({"block.out.bias": torch.zeros(())}, "out.bias"),
    ):
        write(tmp_path / "d.safetensors", tensors | changed, metadata)
        with pytest.raises(ValueError, match=why):
            Direction.load(tmp_path / "d.safetensors")
    with pytest.raises(ValueError, match="the field site must be a whole number"):
        Direction.from_tensors(tensors, {**metadata, "site": "99"})
    for notes, why in (('{"boost": "high"}', "metadata.boost must be"), ('{"text_cosine": 2}', "metadata.text_cosine")):
        with pytest.raises(ValueError, match=why):
            Direction.from_tensors(tensors, {**metadata, "metadata": notes})
    seen, kept = [], record_file.check_tensors
    for module in (record_file, h_direction):
        monkeypatch.setattr(module, "check_tensors", lambda found: seen.extend(found) or kept(found))
    Direction.from_tensors(tensors, metadata)
    assert sorted(seen) == sorted(name.removeprefix("block.") for name in tensors)


def test_the_mean_difference_is_that_of_the_means():
    g = torch.Generator().manual_seed(1)
    a, b = torch.randn(5, 4, 6, 2, 2, generator=g), torch.randn(3, 4, 6, 2, 2, generator=g)
    assert torch.allclose(mean_difference(a, b), b.mean(0) - a.mean(0))
    with pytest.raises(ValueError, match="at least one"):
        mean_difference(a, b[:0])


def test_the_components_are_the_covariances_eigenvectors_one_deviation_long():
    g = torch.Generator().manual_seed(1)
    axes = torch.linalg.qr(torch.randn(24, 3, generator=g))[0].T
    scores = torch.randn(400, 3, generator=g) * torch.tensor([5.0, 2.0, 0.5])
    samples = (scores @ axes + 3).reshape(400, 2, 3, 2, 2)
    found, share = principal_components(samples, 2)
    flat = samples.flatten(1) - samples.flatten(1).mean(0)
    values, vectors = torch.linalg.eigh(flat.T @ flat / 399)
    for k in range(2):
        direction = found[k].flatten()
        assert float(direction.norm()) == pytest.approx(float(values[-1 - k].sqrt()), rel=1e-4)
        assert abs(float(direction @ vectors[:, -1 - k]) / float(direction.norm())) == pytest.approx(1, abs=1e-4)
        assert float(direction[direction.abs().argmax()]) > 0
    assert torch.allclose(share, values.flip(0)[:2] / values.sum(), rtol=1e-3)
    with pytest.raises(ValueError, match="components"):
        principal_components(samples[:2], 2)


def test_the_block_works_on_any_number_of_channels_and_dimensions():
    for channels in (3, 12, 64):
        assert DeltaBlock(channels)(torch.zeros(1, channels, 2, 2), 1.0, "ve").shape == (1, channels, 2, 2)
    assert DeltaBlock(8)(torch.zeros(2, 8, 5, 2, 2), 1.0, "flow").shape == (2, 8, 5, 2, 2)


def test_h_is_read_along_the_walk_and_of_noised_pictures():
    def read(x, s):
        return 10 * x + s, x / (1 + s)

    x, levels = torch.randn(3, 2, generator=torch.Generator().manual_seed(1)), []
    sample_euler(lambda x, s: read(x, s)[1], x, SIGMAS, callback=lambda state: levels.append(state["x"]))
    assert torch.allclose(h_of_walk(read, x, SIGMAS), torch.stack([10 * v + s for v, s in zip(levels, SIGMAS)], 1))
    sigmas, noise = SIGMAS / 8, gaussian(x, 4)()
    found = h_of_pictures(read, x, sigmas, FLOW, gaussian(x, 4))
    assert torch.allclose(found, torch.stack([10 * ((1 - s) * x + s * noise) + s for s in sigmas[:-1]], 1), atol=1e-5)


def test_the_relative_size_is_a_share_of_hs_own_norm():
    h = shifts().expand(5, 4, 6, 2, 2)
    assert torch.allclose(relative_size(0.3 * shifts(), h), torch.full((4,), 0.3))
