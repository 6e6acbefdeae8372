"""Cells: disturbances."""

from __future__ import annotations

from ..graphs import EULER, cell, changes, neutral


@cell
def Disturbance(new):
    g = new()
    plain, none, some = g.drawn(), *(g.drawn(g.own("Disturbance", strength=s, start_percent=0.1)) for s in (0.0, 1.0))
    left = yield g
    return neutral(left, "strength 0 changes nothing", plain, none, some)


@cell
def DisturbanceSampler(new):
    g = new()
    more = {"steps_above": 2, "steps_below": 2}
    none, some = (g.kept(g.own("DisturbanceSampler", strength=s, **more)) for s in (0.0, 1.0))
    left = yield g
    return changes(left.latent(none), left.latent(some))


@cell
def DisturbanceSchedule(new):
    g = new()
    sigmas = g.add("BasicScheduler", scheduler="normal", steps=3, denoise=1.0)
    given = {"sigmas": g.own("DisturbanceSchedule", sigmas=sigmas, steps_above=2, steps_below=2), "noise_seed": 3}
    given |= {"sampler": g.add("KSamplerSelect", **EULER), "latent_image": g.original, "cfg": 5.0}
    made, there = g.kept(g.add("SamplerCustom", **given)), g.kept(g.original)
    left = yield g
    return changes(left.latent(there), left.latent(made))
