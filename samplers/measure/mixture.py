"""A Gaussian mixture as a denoiser: exact at every sigma, so that each algorithm has a right answer to be held against.

With p(x0) = sum_k w_k N(m_k, C_k) and x_s = a x0 + s n (a = 1 for VE, 1 - s for flow):

    p(x_s)        = sum_k w_k N(a m_k, a^2 C_k + s^2 I)
    r_k(x_s)      = w_k N(x_s; a m_k, a^2 C_k + s^2 I) / p(x_s)
    D(x_s)        = E[x0 | x_s] = sum_k r_k [ s^2 V_k m_k + a C_k V_k x_s ],   V_k = (a^2 C_k + s^2 I)^-1
    grad log p    = (a D - x_s) / s^2                                          (Tweedie)

Everything is differentiable in x and in the parameters, and finite at s = 0 and at s = 1 of the flow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..core import VE, Denoise, NoiseProcess, Sigma


@dataclass(frozen=True)
class Conditional:
    """Some coordinates of a mixture given the others. Shapes: [K] modes, [D...] one sample."""

    shares: Tensor  #: [K] weight of each mode given the known coordinates
    mean: Tensor  #: [D...]; a known coordinate carries its value
    variance: Tensor  #: [D...] per coordinate; 0 where known
    mode_means: Tensor  #: [K, D...]
    mode_variances: Tensor  #: [K, D...]


class GaussianMixture:
    """p(x0) = sum_k w_k N(m_k, C_k) over samples of any shape [D...].

    means [K, D...]; stds > 0: one number, [K], or [K, D...] (per coordinate); weights [K] (normalised here, default
    equal); labels: K integers, the class of each mode (default: every mode is a class of its own).
    Parameters are kept in float64; results come in x's dtype. For correlated coordinates see `correlated`."""

    def __init__(
        self, means: Tensor, stds: Tensor | float, weights: Tensor | None = None, labels: Sequence[int] | None = None
    ):
        means = torch.as_tensor(means, dtype=torch.float64)
        stds = torch.as_tensor(stds, dtype=torch.float64)
        stds = stds.reshape(stds.shape + (1,) * (means.ndim - stds.ndim)) if stds.ndim else stds
        if not bool((stds > 0).all()):
            raise ValueError("A mixture needs stds above 0.")
        self._set(means, (stds.expand(means.shape) ** 2).flatten(1), None, weights, labels)

    @classmethod
    def correlated(
        cls, means: Tensor, covariances: Tensor, weights: Tensor | None = None, labels: Sequence[int] | None = None
    ) -> GaussianMixture:
        """Modes with full covariance: covariances [K, P, P] over the P flattened coordinates of means [K, D...]."""
        eigenvalues, basis = torch.linalg.eigh(torch.as_tensor(covariances, dtype=torch.float64))
        if not bool((eigenvalues > 0).all()):
            raise ValueError("A mixture needs positive definite covariances.")
        mixture = cls.__new__(cls)
        mixture._set(torch.as_tensor(means, dtype=torch.float64), eigenvalues, basis, weights, labels)
        return mixture

    def _set(self, means, variances, basis, weights, labels):
        modes = len(means)
        weights = torch.ones(modes) if weights is None else torch.as_tensor(weights)
        self.labels = list(range(modes)) if labels is None else [int(label) for label in labels]
        if len(weights) != modes or len(self.labels) != modes:
            raise ValueError(
                f"{modes} means need {modes} weights and labels; got {len(weights)} and {len(self.labels)}."
            )
        self.shape = means.shape[1:]
        self.means, self.variances, self.basis = means.flatten(1), variances, basis  # [K, P], [K, P], [K, P, P] | None
        self.weights = weights.double() / weights.double().sum()
        self.classes = sorted(set(self.labels))

    def of(self, label: int) -> GaussianMixture:
        """The mixture of one class: p(x0 | y = label)."""
        chosen = [k for k, other in enumerate(self.labels) if other == label]
        if not chosen:
            raise ValueError(f"No mode has label {label}; the classes are {self.classes}.")
        part = type(self).__new__(type(self))
        part._set(
            self.means[chosen].reshape(-1, *self.shape),
            self.variances[chosen],
            None if self.basis is None else self.basis[chosen],
            self.weights[chosen],
            [label] * len(chosen),
        )
        return part

    def posterior(self, x: Tensor, sigma: Sigma, process: NoiseProcess) -> tuple[Tensor, Tensor]:
        """log w_k N(x_s; ...) [B, K] and E[x0 | x_s, k] [B, K, P]."""
        means, variances, weights = (t.to(x) for t in (self.means, self.variances, self.weights))
        s = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).reshape(-1, 1, 1)
        a = process.signal(s)
        rows = x.flatten(1)[:, None]  # [B, 1, P]
        if self.basis is not None:  # into each mode's own axes, where its covariance is diagonal
            basis = self.basis.to(x)
            means, rows = torch.einsum("kpq,kp->kq", basis, means), torch.einsum("kpq,bop->bkq", basis, rows)
        total = a**2 * variances + s**2
        log_p = weights.log() - 0.5 * ((rows - a * means) ** 2 / total + total.log() + math.log(2 * math.pi)).sum(-1)
        expected = (s**2 * means + a * variances * rows) / total
        if self.basis is not None:
            expected = torch.einsum("kpq,bkq->bkp", basis, expected)
        return log_p, expected

    def denoise(self, x: Tensor, sigma: Sigma, process: NoiseProcess = VE) -> Tensor:
        """D = E[x0 | x_s = x], x [B, D...], sigma >= 0."""
        log_p, expected = self.posterior(x, sigma, process)
        return (log_p.softmax(1)[..., None] * expected).sum(1).reshape(x.shape)

    def denoiser(self, process: NoiseProcess) -> Denoise:
        """`denoise` of one process, in the protocol the samplers take."""
        return partial(self.denoise, process=process)

    def log_prob(self, x: Tensor, sigma: Sigma = 0.0, process: NoiseProcess = VE) -> Tensor:
        """log p(x_s = x), [B]."""
        return self.posterior(x, sigma, process)[0].logsumexp(1)

    def responsibilities(self, x: Tensor, sigma: Sigma = 0.0, process: NoiseProcess = VE) -> Tensor:
        """p(mode | x_s = x), [B, K]."""
        return self.posterior(x, sigma, process)[0].softmax(1)

    def log_prob_class(self, x: Tensor, sigma: Sigma = 0.0, process: NoiseProcess = VE) -> Tensor:
        """log p(y | x_s = x), [B, classes], columns in the order of `self.classes`."""
        log_r = self.posterior(x, sigma, process)[0].log_softmax(1)
        labels = torch.tensor(self.labels)
        return torch.stack([log_r[:, labels == label].logsumexp(1) for label in self.classes], 1)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n draws of x0, [n, D...] float64."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.means.shape[1], generator=generator, dtype=torch.float64)
        noise = self.variances[k].sqrt() * noise
        if self.basis is not None:
            noise = torch.einsum("npq,nq->np", self.basis[k], noise)
        return (self.means[k] + noise).reshape(n, *self.shape)

    def covariances(self) -> Tensor:
        """[K, P, P] over the flattened coordinates."""
        diagonal = torch.diag_embed(self.variances)
        return diagonal if self.basis is None else self.basis @ diagonal @ self.basis.mT

    def conditional(self, x0: Tensor, mask: Tensor) -> Conditional:
        """p(x0 where mask = 1 | x0 where mask = 0), one sample x0 [D...], mask [D...] (1 means: unknown, repaint)."""
        values = torch.as_tensor(x0, dtype=torch.float64).flatten()
        unknown = torch.as_tensor(mask).broadcast_to(self.shape).flatten() > 0.5
        known = ~unknown
        cov = self.covariances()
        gap = values[known] - self.means[:, known]  # [K, known]
        known_cov, cross = cov[:, known][:, :, known], cov[:, unknown][:, :, known]
        log_p = (
            torch.distributions.MultivariateNormal(torch.zeros_like(gap), known_cov).log_prob(gap)
            if known.any()
            else torch.zeros(len(gap), dtype=torch.float64)
        )
        shares = (self.weights.log() + log_p).softmax(0)
        gain = torch.linalg.solve(known_cov, cross.mT).mT  # [K, unknown, known]
        means = values.expand(len(shares), -1).clone()
        means[:, unknown] = self.means[:, unknown] + (gain @ gap[..., None])[..., 0]
        variances = torch.zeros_like(means)
        variances[:, unknown] = (cov[:, unknown][:, :, unknown] - gain @ cross.mT).diagonal(dim1=1, dim2=2)
        mean = torch.where(unknown, shares @ means, values)
        variance = shares @ (variances + (means - mean) ** 2)
        shape = self.shape
        return Conditional(
            shares,
            mean.reshape(shape),
            variance.reshape(shape),
            means.reshape(-1, *shape),
            variances.reshape(-1, *shape),
        )
