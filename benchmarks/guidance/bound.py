"""The law of classifier guidance at the node's defaults, and what a bound on the push does to it.

Two parts of the guidance table. On a Gaussian mixture with its exact classifier scale 1 must sample the class: the
node's own defaults are read from its schema, so that a changed default shows here. On the demo model: how often a bound
acts, and the class share with it beside that without it, same noises."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import torch

from ...nodes.classifier import ClassifierGuidance
from ...nodes.guidance import strength, term
from ...samplers.guidance.terms import Guidance, with_guidance
from ...samplers.measure.mixture import GaussianMixture
from ...samplers.ode import sample_euler
from .ways import Lab, Way, share

N, STEPS, LABEL = 4000, 60, 1
MIXTURE = GaussianMixture(torch.tensor([[-2.0, 0.5], [1.8, -1.2], [0.5, 2.4], [2.6, 1.6]]), 0.4, labels=[0, 1, 1, 2])
#: the bounds that the demo's workflows set, by term; scales as there
WORKFLOW_BOUND = dict.fromkeys(("classifier", "spherical", "contrastive"), 1.0)
WORKFLOW_BOUND |= dict.fromkeys(("semantic_content", "semantic_structure", "semantic_style"), 0.5)
SCALE = {"classifier": 40.0, "spherical": 100.0, "contrastive": 20.0}
SEMANTIC = {"semantic_content": 300.0, "semantic_structure": 120.0, "semantic_style": 60.0}
PICTURES = 16
EXACT_HEAD = ("what", "scale", "class share", "pushes at the bound")
BOUND_HEAD = ("term", "bound", "class share", "pushes at the bound")


def node_guidance(log_likelihood) -> Guidance:
    """The term that Classifier Guidance makes of a likelihood of noisy latents, every widget at its default."""
    groups = ClassifierGuidance.INPUT_TYPES()
    given = {k: spec[1]["default"] for part in groups.values() for k, spec in part.items() if "default" in spec[1]}
    table = SimpleNamespace(percent_to_sigma=lambda p: math.nan)  # asked only for a default inside the run
    acts = {k: given[k] for k in ("scale", "start_percent", "end_percent", "bound", "every", "variance")}
    model = SimpleNamespace(get_model_object=lambda _: table)
    return term(log_likelihood, "class", "latent", strength(model, **acts)).guidance


def levels() -> torch.Tensor:
    """Karras levels from 20 to .02, then 0."""
    ramp = torch.linspace(0, 1, STEPS, dtype=torch.float64)
    return torch.cat([(20 ** (1 / 7) + ramp * (0.02 ** (1 / 7) - 20 ** (1 / 7))) ** 7, torch.zeros(1)]).double()


def exact_share(guidance: Guidance | None) -> tuple[float, float]:
    """(share of N samples whose likeliest class is LABEL, share of the pushes that the bound shrank)."""
    limited, sigmas = [], levels()
    x = torch.randn(N, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * sigmas[0]
    terms = [] if guidance is None else [guidance]
    x0 = sample_euler(with_guidance(MIXTURE.denoise, terms, report=lambda r: limited.append(r["limited"])), x, sigmas)
    right = MIXTURE.log_prob_class(x0).argmax(1) == LABEL
    return float(right.double().mean()), float(torch.stack(limited).mean()) if limited else 0.0


def exact_table() -> tuple[list[list], float]:
    """Rows [what, scale, class share, share at the bound], and the class share at the node's defaults."""
    default = node_guidance(lambda x, s, _: MIXTURE.log_prob_class(x, s)[:, LABEL])
    draws = MIXTURE.of(LABEL).sample(N, torch.Generator().manual_seed(1))
    rows = [
        ["the class itself", "", float((MIXTURE.log_prob_class(draws).argmax(1) == LABEL).double().mean()), 0.0],
        ["unguided", 0.0, *exact_share(None)],
        ["the node's defaults", default.scale, *exact_share(default)],
    ]
    rows += [
        [f"bound {b:g}", k, *exact_share(replace(default, bound=b, scale=k))] for b in (1.0, 0.5) for k in (1.0, 4.0)
    ]
    return rows, rows[2][2]


def demo_term(lab: Lab, name: str, bound: float | None) -> Guidance:
    """A term as the demo's workflow has it, with this bound."""
    if name in SEMANTIC:
        return replace(lab.semantic(name.removeprefix("semantic_"), SEMANTIC[name]), bound=bound)
    made = lab.classify(SCALE[name]) if name == "classifier" else lab.clip(name, SCALE[name])
    return replace(made, bound=bound)


def demo_shares(bench, lab: Lab) -> tuple[list[list], dict[str, float]]:
    """Rows [term, bound, class share, share at the bound] with and without the bound; {term: share at the bound}."""
    rows, shares = [], {}
    for name, bound in WORKFLOW_BOUND.items():
        for b in (bound, None):
            way = Way((demo_term(lab, name, b),))
            kept = bench.each(f"bound {name} {b or 0:g}", range(7000, 7000 + PICTURES), lab.compute(way), PICTURES)
            at = sum(row["b"] for row in kept) / len(kept)
            lost = any(math.isnan(row["f"][0]) for row in kept)
            rows.append([name, b or "none", "diverges" if lost else share(kept), at])
            if b is not None:
                shares[name] = at
    return rows, shares
