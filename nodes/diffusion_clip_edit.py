"""DiffusionCLIP Edit and Mix Models: edits by what DiffusionCLIP Tune made, by degree, and several at once."""

from __future__ import annotations

from ..engine import mixing
from ..engine.comfy import check_latent, fitted, latent_out, window
from ..engine.run import sample_with
from ..engine.sampler import held_start, own_sampler, walk_back
from ..samplers.core import gaussian
from ..samplers.ode import sample_euler
from ..samplers.tuning.diffusion_clip import into_seen_domain
from ..samplers.tuning.mixing import Share
from ..samplers.window import SigmaWindow
from .base import CFG, LATENT, MODEL, NEGATIVE, POSITIVE, SEED, Box, Float, Int, Output, Socket
from .diffusion_clip import CATEGORY, INVERSION_STEPS, PUBLISHED, T0, schedule
from .masked import MaskedEdit, own_mask
from .report import text_result
from .tuning_chain import inverted

LORA = Socket("lora_model", "LORA_MODEL", "From DiffusionCLIP Tune, or any LoRA of this model as data.")


def share(model, weight: float, start: float, end: float) -> Share:
    return Share(weight, SigmaWindow(*window(model, start, end)))


WEIGHT = Float("weight", 1.0, "How much of this LoRA's prediction counts; the rest is the model's.", 0.0, 3.0, 0.05)
START = Float("start_percent", 0.0, "From this part of the schedule on (0: pure noise).")
END = Float("end_percent", 1.0, "Up to this part of the schedule (1: done).")


def _numbered(number: int):
    return tuple(
        item(name=f"{item.name}_{number}").optional()
        for item in (LORA(tooltip="A further LoRA of the same model."), WEIGHT, START, END)
    )


class MixModels(Box):
    ID, TITLE, CATEGORY = "NullText_MixModels", "Mix Models (predictions)", CATEGORY
    SEARCH_ALIASES = ["diffusionclip", "mix lora", "prediction mixing", "attribute degree", "model blend"]
    DESCRIPTION = (
        "A guider that mixes a model's predictions with and without several LoRAs, each in its own part of the "
        "schedule: the degree of an edit, and several edits at once (DiffusionCLIP). Cost: one prediction for each "
        "LoRA at work, and one for the model unless their weights sum to 1 (several: or more)."
    )
    INPUTS = (MODEL, POSITIVE, NEGATIVE, CFG(default=1.0), LORA, WEIGHT, START, END, *_numbered(2), *_numbered(3))
    OUTPUTS = (Output("GUIDER", "For SamplerCustomAdvanced, with any sampler."),)

    def run(self, model, positive, negative, cfg, lora_model, weight, start_percent, end_percent, **more):
        tuned = [(lora_model, share(model, weight, start_percent, end_percent))]
        for i in (2, 3):
            if more.get(f"lora_model_{i}") is not None:
                given = (more.get(f"{name}_{i}", 1.0 * (name != "start_percent")) for name in _DIALS)
                tuned.append((more[f"lora_model_{i}"], share(model, *given)))
        guider = mixing.mix_guider(model, tuned, positive, negative, cfg)
        return text_result("\n".join([f"{len(tuned)} LoRA(s) mixed with the model.", *guider.notices]), guider)


_DIALS = ("weight", "start_percent", "end_percent")


class DiffusionCLIPEdit(Box):
    ID, TITLE, CATEGORY = "NullText_DiffusionCLIPEdit", "DiffusionCLIP Edit", CATEGORY
    SEARCH_ALIASES = ["diffusionclip", "text direction edit", "unseen domain", "tuned model edit"]
    DESCRIPTION = (
        "Edits pictures with what DiffusionCLIP Tune made: inverts them by the model alone and samples them again by "
        "the tuned one, or by a mixture. A picture of a kind that the model never saw can first be brought among those "
        "it knows."
    )
    INPUTS = (
        MODEL(tooltip="The model as it was tuned on, without the LoRA."),
        POSITIVE(tooltip="The prompt that was given in tuning, usually empty."),
        LATENT(tooltip="The pictures, encoded. Outside a noise mask they stay as they are."),
        LORA,
        Float(
            "degree",
            1.0,
            "0: the picture comes back; 1: the tuned model; between: both predictions mixed; above 1: further the same "
            "way.",
            0,
            3.0,
        ),
        T0,
        INVERSION_STEPS,
        Int("steps", PUBLISHED.sample, "Steps of the way back; the authors tune with 6 and edit with 40.", 2),
        Int(
            "unseen_passes",
            0,
            "For a picture unlike those that the model knows: how many times it is first noised to t0 and sampled by "
            "the model. The authors advise more than 8. 0: none.",
            0,
            100,
        ),
        Int("unseen_steps", 6, "Steps of each such pass.", 2),
        SEED,
    )
    OUTPUTS = (Output("LATENT", "The edited pictures."), Output("STRING", "What it cost.", "report"))

    def run(
        self, model, positive, latent, lora_model, degree, t0, inversion_steps, steps, unseen_passes, unseen_steps, seed
    ):
        there, back = schedule(model, t0, inversion_steps), schedule(model, t0, steps)
        latent = fitted(model, latent)
        edit = MaskedEdit(latent["samples"], own_mask(latent))
        guider = mixing.mix_guider(model, [(lora_model, Share(degree))], positive, None, 1.0)
        said = list(guider.notices)
        if unseen_passes:
            few = schedule(model, t0, unseen_steps)

            def body(run):
                return into_seen_domain(
                    run.guided("positive", None, 1.0),
                    run.latent,
                    few.to(run.device),
                    noise=gaussian(run.latent, seed),
                    process=run.process,
                    repeats=unseen_passes,
                    on_pass=lambda _i, x: run.tick(unseen_steps),
                )

            total = unseen_passes * unseen_steps
            brought = sample_with(model, {"positive": positive}, check_latent(model, latent), few, body, total=total)
            latent = {"samples": latent_out(model, brought).cpu()}
            said.append(f"{unseen_passes} passes of {unseen_steps} steps by the model alone.")
        inversion, line = inverted(model, positive, latent, there)
        sampler = own_sampler(sample_euler, **held_start(inversion))
        out = edit.put_back(walk_back(guider, inversion, sampler, back, mask=edit.grid, seed=seed))
        text = "\n".join([f"Edited at degree {degree:g} in {len(back) - 1} steps.", line, *said])
        return text_result(text, {"samples": out}, text)


NODES = (DiffusionCLIPEdit, MixModels)
