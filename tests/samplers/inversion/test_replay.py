"""The way back from an INVERSION on the closed-form denoiser."""

import pytest
import torch
from nulltext.samplers.core import FLOW, VE, gaussian
from nulltext.samplers.inversion import pivots
from nulltext.samplers.inversion.record import Inversion
from nulltext.samplers.inversion.replay import calls_back, cfg_of, first_step, null_embedding_at, way_back
from nulltext.samplers.measure.mixture import GaussianMixture

MEANS = torch.tensor([[-1.0, 0.5], [1.5, -1.0]]).double().view(2, 2, 1, 1)
MIXTURE = GaussianMixture(MEANS, 0.8, torch.tensor([0.4, 0.6]))
SIGMAS = {"ve": torch.linspace(2, 0, 11) ** 2, "flow": torch.linspace(1, 0, 11)}


def denoiser(process, counter=None):
    def denoise(x, sigma):
        if counter is not None:
            counter.append(float(sigma))
        return MIXTURE.denoise(x.double(), sigma, process).to(x)

    return denoise


def made(pivot, process):
    x0, sigmas = MIXTURE.sample(3, torch.Generator().manual_seed(0)).float(), SIGMAS[process.name]
    options = {"noise": gaussian(x0, 1)} if pivot == "edit_friendly" else {}
    out = getattr(pivots, f"invert_{pivot}")(denoiser(process), x0, sigmas, process=process, **options)
    return Inversion(sigmas, out.trajectory, process=process.name, pivot=pivot, pair=out.pair, residuals=out.residuals)


@pytest.mark.parametrize("first", [0, 4, 8, 9])
@pytest.mark.parametrize("process", [VE, FLOW])
@pytest.mark.parametrize(("pivot", "tolerance"), [("exact_pair", 1e-4), ("edit_friendly", 1e-5), ("fixed_point", 1e-2)])
def test_way_back_from_any_step(pivot, tolerance, process, first):
    inversion, counter = made(pivot, process), []
    sample, x, sigmas, options = way_back(inversion, first)
    out = sample(denoiser(process, counter), x, sigmas, process=process, noise=None, **options)
    # the last step alone has no pair to start from: an Euler step stands in
    loose = 0.2 if pivot == "exact_pair" and first == 9 else tolerance
    assert (out - inversion.source).abs().max() < loose
    assert len(counter) == calls_back(inversion, first)


@pytest.mark.parametrize("process", [VE, FLOW])
@pytest.mark.parametrize("pivot", ["ddim", "exact_pair", "edit_friendly"])
def test_every_way_back_takes_a_line_after_each_step(pivot, process):
    """Left alone the walk is the same to the bit; what the line returns is where the walk goes on."""
    inversion, steps = made(pivot, process), []
    sample, x, sigmas, options = way_back(inversion)

    def walk(after):
        return sample(denoiser(process), x, sigmas, process=process, noise=None, after=after, **options)

    def watch(x, step):
        steps.append((step.index, float(step.sigma), float(step.sigma_next)))
        return x

    assert torch.equal(walk(watch), walk(None))
    first = 1 if pivot == "exact_pair" else 0  # the pair's first step is not walked
    assert steps == [(i, float(sigmas[i]), float(sigmas[i + 1])) for i in range(first, 10)]
    moved = walk(lambda x, step: inversion.trajectory[step.index + 1] + 1)
    assert torch.equal(moved, inversion.source + 1)


def test_one_law_for_the_cfg_of_a_run():
    plain = made("ddim", VE).replace(cfg=3.5)
    null = torch.zeros(10, 3, 5, 2)
    free = [
        plain,
        plain.replace(correction="overwrite"),
        made("edit_friendly", VE).replace(cfg=3.5),
        plain.replace(correction="negative_prompt", null_embeddings=null),
    ]
    for inversion in free:
        assert [cfg_of(inversion, c) for c in (0.0, 3.5, 15.0, 1.0)] == [3.5, 3.5, 15.0, 1.0]
    for correction in ("null_text", "global_null"):
        tied = plain.replace(correction=correction, null_embeddings=null)
        assert [cfg_of(tied, c) for c in (0.0, 3.5)] == [3.5, 3.5]
        with pytest.raises(ValueError, match=r"optimised for cfg 3.5 and fit no other.*for cfg 15\.$"):
            cfg_of(tied, 15.0)
    assert cfg_of(None, 7.5) == 7.5
    with pytest.raises(ValueError, match="there is no inversion: set a cfg"):
        cfg_of(None, 0.0)


def test_strength_is_a_share_of_the_steps():
    assert [first_step(s, 10) for s in (0, 0.25, 0.6, 1)] == [10, 8, 4, 0]
    for bad in (-0.1, 1.1):
        with pytest.raises(ValueError, match="strength"):
            first_step(bad, 10)


def test_null_embedding_of_a_sigma():
    sigmas = torch.tensor([4.0, 2.0, 1.0, 0.0])
    plain = Inversion(sigmas, torch.zeros(4, 1, 2, 1, 1))
    assert null_embedding_at(plain, 2.0) is None
    null = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 1, 5, 2)
    inversion = plain.replace(null_embeddings=null, correction="null_text", cfg=7.5)
    asked = (9.0, 4.0, 3.0, 2.0, 2.00001, 1.5, 1.0, 0.1, 0.0)
    at = [float(null_embedding_at(inversion, s).flatten()[0]) for s in asked]
    assert at == [0, 0, 0, 1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("process", [VE, FLOW])
def test_the_way_back_walks_with_the_records_eta_and_gamma(process):
    x0, sigmas = MIXTURE.sample(3, torch.Generator().manual_seed(0)).float(), SIGMAS[process.name]
    half = pivots.invert_edit_friendly(denoiser(process), x0, sigmas, process=process, noise=gaussian(x0, 1), eta=0.5)
    bdia = pivots.invert_exact_pair(denoiser(process), x0, sigmas, process=process, gamma=1.0)
    records = {"pivot": "edit_friendly", "residuals": half.residuals, "metadata": {"eta": 0.5}}, half.trajectory
    others = {"pivot": "exact_pair", "pair": bdia.pair, "metadata": {"gamma": 1.0}}, bdia.trajectory
    for fields, trajectory in (records, others):
        record = Inversion(sigmas, trajectory, process=process.name, **fields)
        sample, x, levels, options = way_back(record)
        out = sample(denoiser(process), x, levels, process=process, noise=None, **options)
        assert (out - record.source).abs().max() < 1e-4
