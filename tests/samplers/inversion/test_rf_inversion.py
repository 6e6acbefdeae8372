"""RF-Inversion: its two ends in closed form, the authors' equations written out, and what it refuses."""

import pytest
import torch
from nulltext.samplers.core import FLOW, VE, VarianceExploding
from nulltext.samplers.inversion.pivots import invert_ddim
from nulltext.samplers.inversion.rf_inversion import FADES, invert_rf, sample_rf, strengths
from nulltext.samplers.ode import sample_euler
from nulltext.tests.running import normal

SIGMAS = {"flow": torch.linspace(1, 0, 9, dtype=torch.float64), "ve": torch.linspace(8, 0, 9, dtype=torch.float64)}
SIGMAS["edm"] = SIGMAS["ve"]
PROCESSES = {"flow": FLOW, "ve": VE, "edm": VarianceExploding(data=0.5)}
X0, N = (normal(2, 3, 4, 4, seed=s, dtype=torch.float64) for s in (1, 2))


def denoise(x, sigma):
    return 0.4 * x.tanh() - 0.1 * float(sigma)


@pytest.fixture(params=list(SIGMAS))
def kind(request):
    return request.param


def test_gamma_0_is_ddim_inversion_and_gamma_1_ends_in_the_noise(kind):
    process, sigmas = PROCESSES[kind], SIGMAS[kind]
    plain = invert_rf(denoise, X0, sigmas, process=process, noise=N, gamma=0.0)
    torch.testing.assert_close(plain, invert_ddim(denoise, X0, sigmas, process=process).trajectory[0])
    drawn = invert_rf(denoise, X0, sigmas, process=process, noise=N, gamma=1.0)
    torch.testing.assert_close(drawn, process.noised(X0, sigmas[0], N))


def test_the_authors_equations():
    """Alg. 1 and 2 with t = 1 - s on the way back and v = (D - x)/s; the network as this pack asks it."""
    sigmas, gamma, eta = SIGMAS["flow"], 0.5, 0.9
    y = X0
    for i in reversed(range(8)):
        t = 1 - sigmas  # data at t = 1: the forward time of the paper is 1 - t
        u, towards = (y - denoise(y, sigmas[i])) / sigmas[i], (N - y) / (1 - sigmas[i + 1])
        y = y + (t[i + 1] - t[i]) * (u + gamma * (towards - u))
    made = invert_rf(denoise, X0, sigmas, process=FLOW, noise=N, gamma=gamma)
    torch.testing.assert_close(made, y)
    x = y
    for i in range(8):
        t = 1 - sigmas
        v, home = -(x - denoise(x, sigmas[i])) / sigmas[i], (X0 - x) / (1 - t[i])
        x = x + (t[i + 1] - t[i]) * (v + (eta if i < 3 else 0) * (home - v))
    torch.testing.assert_close(sample_rf(denoise, made, sigmas, source=X0, etas=strengths(8, eta, 0, 3)), x)


def test_eta_1_gives_the_picture_and_eta_0_the_plain_walk(kind):
    sigmas, begin = SIGMAS[kind], N * SIGMAS[kind][0]
    home = sample_rf(denoise, begin, sigmas, source=X0, etas=strengths(8, 1.0, 0, 8))
    torch.testing.assert_close(home, X0)
    free = sample_rf(denoise, begin, sigmas, source=X0, etas=strengths(8, 0.9, 3, 3))
    assert torch.equal(free, sample_euler(denoise, begin, sigmas))


def test_a_larger_eta_stays_nearer(kind):
    sigmas, begin = SIGMAS[kind], N * SIGMAS[kind][0]
    far = [
        float((sample_rf(denoise, begin, sigmas, source=X0, etas=strengths(8, eta, 0, 6)) - X0).norm())
        for eta in (0.0, 0.5, 0.9)
    ]
    assert far[0] > far[1] > far[2]


def test_how_eta_goes_on():
    assert strengths(5, 0.8, 1, 3) == [0.0, 0.8, 0.8, 0.0, 0.0]
    assert strengths(4, 0.8, 0, 4, FADES[1]) == pytest.approx([0.8, 0.6, 0.4, 0.2])


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (lambda: strengths(5, 1.1, 0, 3), "eta lies between"),
        (lambda: strengths(5, 0.9, 3, 6), "from a start to a stop"),
        (lambda: strengths(5, 0.9, 0, 3, "never"), "fade as"),
        (lambda: invert_rf(denoise, X0, SIGMAS["ve"], process=VE, noise=N, gamma=-1), "gamma lies between"),
        (lambda: sample_rf(denoise, N, SIGMAS["ve"], source=X0, etas=[0.0]), "as many etas"),
    ],
)
def test_refusals(act, sentence):
    with pytest.raises(ValueError, match=sentence):
        act()
