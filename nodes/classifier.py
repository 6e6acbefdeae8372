"""Classifier guidance, and the classifiers for it: trained here on latents, or loaded for decoded pictures."""

from __future__ import annotations

import torch

from ..engine import class_folder, guide, towers
from ..engine.comfy import Progress, process_of, sigma_range
from ..engine.fingerprint import fingerprint
from ..samplers.networks.latent_classifier import (
    FORMAT,
    LatentClassifier,
    class_index,
    of_decoded,
    train_latent_classifier,
)
from . import fields as base
from .guidance_inputs import (
    BOUND,
    DECODER,
    END,
    EVERY,
    LATENT,
    MODES,
    NETWORK,
    SCALE_TIP,
    START,
    VARIANCE,
    attached,
    term,
)
from .plots import line_chart
from .report import text_result

AUTO = "automatic"
KIND = "classifiers"
CATEGORY = "NullText/guidance"


def _no_files(kind: str) -> list[str]:
    return [f"(no file in models/{kind} or output/{kind})"]


class ClassifierGuidance:
    ID = "NullText_ClassifierGuidance"
    TITLE = "Classifier Guidance"
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ["classifier guidance", "class conditional", "Dhariwal Nichol", "guided diffusion"]
    DESCRIPTION = base.describe(
        "Pulls every sampling step towards a class by the gradient of a classifier (Dhariwal & Nichol, arXiv "
        "2105.05233). Patches a MODEL for any sampler; several guidance nodes add up. At scale 1 with a perfect "
        "classifier it samples the class; higher scales sharpen.",
        SEARCH_ALIASES,
    )
    FUNCTION = "run"
    RETURN_TYPES = ("MODEL",)
    OUTPUT_TOOLTIPS = ("The guided clone; the model itself at scale 0.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": base.MODEL,
                "classifier": (
                    "CLASSIFIER",
                    {"tooltip": "From Train Latent Classifier, Load Classifier or Load Image Classifier."},
                ),
                "class_name": (
                    "STRING",
                    {
                        "default": "",
                        "tooltip": "One of the classifier's own labels, by name. "
                        "Leave it empty to be told which there are.",
                    },
                ),
                "scale": base.number(
                    1.0,
                    -1000.0,
                    1000.0,
                    0.1,
                    SCALE_TIP + "1: the class as a perfect classifier would sample it; the paper took up to 10 without "
                    "a class-conditional model. Negative: away from the class.",
                ),
                "start_percent": START,
                "end_percent": END,
                "gradient_mode": base.choice(
                    [AUTO, LATENT, DECODER, NETWORK],
                    "Automatic: on the latent for a latent classifier, through the decoder for a classifier of "
                    "pictures. Through the network is exact for a classifier of pictures, and dearest.",
                ),
                "bound": BOUND,
                "every": EVERY,
            },
            "optional": {
                "vae": (
                    "VAE",
                    {"tooltip": "The VAE that belongs to the model; only a classifier of pictures needs it."},
                ),
                "variance": VARIANCE,
            },
        }

    def run(
        self,
        model,
        classifier,
        class_name,
        scale,
        start_percent,
        end_percent,
        gradient_mode,
        bound,
        every,
        vae=None,
        variance=1.0,
    ):
        index = class_index(classifier.labels, class_name)
        name, window = classifier.labels[index], guide.window(model, start_percent, end_percent)
        if isinstance(classifier, LatentClassifier):
            made, said = self._latent(model, classifier, name, scale, window, gradient_mode, bound, every)
        else:
            made, said = self._picture(
                model, classifier, name, scale, window, gradient_mode, bound, every, vae, variance
            )
        return attached(model, made, said)

    def _latent(self, model, classifier, name, scale, window, mode, bound, every):
        if mode not in (AUTO, LATENT):
            raise ValueError(
                "This classifier judges noisy latents: set gradient_mode to automatic, there is nothing to decode."
            )
        process, channels = process_of(model), model.get_model_object("latent_format").latent_channels
        if classifier.process is not process or classifier.net.config["in_channels"] != channels:
            raise ValueError(
                f"This classifier was trained on latents of {classifier.net.config['in_channels']} "
                f"channels of a {classifier.process.name} model, but this model has {channels} and is "
                f"{process.name}: train one for this model."
            )
        said = [f"Towards {name!r} at scale {scale:g}."]
        if classifier.fingerprint and classifier.fingerprint != fingerprint(model)["structure"]:
            said.append(
                "Notice: the classifier was trained for a model of another architecture; if their VAEs "
                "differ too, its gradients mean nothing."
            )

        def probabilities(x, sigma, _denoised):
            return classifier.labels, classifier(x, sigma).softmax(1)

        return term(
            classifier.log_likelihood(name),
            f"class {name}",
            "latent",
            scale,
            window,
            bound,
            every,
            modules=(classifier,),
            probabilities=probabilities,
        ), said

    def _picture(self, model, classifier, name, scale, window, mode, bound, every, vae, variance):
        if mode == LATENT:
            raise ValueError(
                "This classifier judges clean pictures, not latents: set gradient_mode to automatic "
                "(through the decoder), or train a latent classifier for this model."
            )
        if vae is None:
            raise ValueError(
                "This classifier judges pictures: wire the VAE that belongs to the model, so that the "
                "estimate can be decoded."
            )
        decode, index = guide.decoder(model, vae), class_index(classifier.labels, name)

        def probabilities(_x, _sigma, denoised):
            return classifier.labels, classifier(decode(denoised)).softmax(1)

        likelihood, mode = of_decoded(classifier, index, decode), MODES.get(mode, "decoder")
        return term(
            likelihood,
            f"class {name}",
            mode,
            scale,
            window,
            bound,
            every,
            variance,
            modules=(classifier, vae.first_stage_model),
            patchers=(vae.patcher,),
            probabilities=probabilities,
        ), [f"Towards {name!r} at scale {scale:g}."]


class TrainLatentClassifier:
    ID = "NullText_TrainLatentClassifier"
    TITLE = "Train Latent Classifier"
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ["train classifier", "noisy classifier", "time-dependent classifier", "noise-aware classifier"]
    DESCRIPTION = base.describe(
        "Trains a noise-aware classifier of latents from a folder of pictures with one sub-folder per class, for "
        "Classifier Guidance (arXiv 2105.05233, section 4), and saves it with its labels into ComfyUI's "
        "output/classifiers folder.",
        SEARCH_ALIASES,
    )
    FUNCTION = "run"
    OUTPUT_NODE = True
    RETURN_TYPES = ("CLASSIFIER", "IMAGE", "STRING")
    RETURN_NAMES = ("classifier", "loss_curve", "path")
    OUTPUT_TOOLTIPS = ("The trained classifier.", "Loss and accuracy over the steps.", "The file that was written.")

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": base.MODEL,
                "vae": ("VAE", {"tooltip": "The VAE that belongs to the model: it encodes the pictures."}),
                "folder": (
                    "STRING",
                    {
                        "default": "classes",
                        "tooltip": "A folder inside ComfyUI's input folder, "
                        "with one sub-folder of pictures per class; "
                        "their names become the labels.",
                    },
                ),
                "size": base.whole(
                    128,
                    32,
                    2048,
                    "Pictures are cropped to a square and scaled to this many pixels: the size that you will sample.",
                ),
                "train_steps": base.whole(600, 1, 100000, "Training steps. More help until the loss curve is flat."),
                "batch": base.whole(32, 2, 1024, "Latents per step."),
                "learning_rate": base.number(1e-3, 1e-6, 1e-1, 1e-4, "Peak learning rate; it warms up and decays."),
                "mirror": (
                    "BOOLEAN",
                    {"default": False, "tooltip": "Also train on mirror images. Off where left and right matter."},
                ),
                "seed": base.SEED,
                "file_name": (
                    "STRING",
                    {
                        "default": "my_classifier",
                        "tooltip": "Name of the file in output/classifiers. A number is added if it exists.",
                    },
                ),
            }
        }

    def run(self, model, vae, folder, size, train_steps, batch, learning_rate, mirror, seed, file_name):
        labels, pictures, targets = class_folder.read(folder)
        path = towers.new_file(KIND, file_name)
        guide.decoder(model, vae)  # refuses a VAE of another model before any work
        progress = Progress(len(pictures) + train_steps)
        latents = class_folder.encode(model, vae, pictures, size, progress)
        low, high = sigma_range(model)
        sigmas = class_folder.training_levels(model, low, high)
        curves = {"loss": [], "accuracy": []}

        def step(_i, loss, accuracy):
            curves["loss"].append(loss)
            curves["accuracy"].append(accuracy)
            progress.tick(1)

        with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng():
            torch.manual_seed(seed)
            made = LatentClassifier.new(
                labels,
                latents.shape[1],
                min(latents.shape[-2:]),
                process=process_of(model),
                fingerprint=fingerprint(model)["structure"],
            ).to(model.load_device)
            data = latents.clone().to(model.load_device), torch.tensor(targets).to(model.load_device)
            train_latent_classifier(
                made,
                *data,
                sigmas,
                steps=train_steps,
                batch=batch,
                lr=learning_rate,
                mirror=mirror,
                seed=seed,
                callback=step,
            )
        towers.write(path, made)
        tail = max(1, train_steps // 10)
        loss, accuracy = (sum(curves[k][-tail:]) / len(curves[k][-tail:]) for k in ("loss", "accuracy"))
        said = (
            f"Saved as {path}: {len(labels)} classes "
            f"({', '.join(labels[:8])}{', ...' if len(labels) > 8 else ''}), {len(pictures)} pictures, "
            f"{train_steps} steps; at the end loss {loss:.3f} and {accuracy:.0%} right over all noise levels "
            "(pure noise, where nothing can be told, included)."
        )
        chart = line_chart(
            "training (all noise levels)",
            {"loss": _smooth(curves["loss"]), "accuracy": _smooth(curves["accuracy"])},
            low=0.0,
        )
        return text_result(said, made, chart, str(path))


def _smooth(values: list[float]) -> list[float]:
    window = max(1, len(values) // 50)
    return [sum(values[max(0, i - window + 1) : i + 1]) / (i + 1 - max(0, i - window + 1)) for i in range(len(values))]


class LoadClassifier:
    ID = "NullText_LoadClassifier"
    TITLE = "Load Latent Classifier"
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ["load classifier", "noisy classifier"]
    DESCRIPTION = base.describe(
        "Loads a latent classifier that Train Latent Classifier saved (output/classifiers, or models/classifiers).",
        SEARCH_ALIASES,
    )
    FUNCTION = "run"
    RETURN_TYPES = ("CLASSIFIER",)
    OUTPUT_TOOLTIPS = ("The classifier, with its labels.",)

    @classmethod
    def INPUT_TYPES(cls):
        found = towers.files(KIND, lambda meta: meta.get("format") == FORMAT)
        return {
            "required": {
                "file": base.choice(
                    found or _no_files(KIND), "A classifier of noisy latents, saved by Train Latent Classifier."
                )
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, file):
        return True  # a file may be newer than the list on the page; run says what is wrong with it

    @classmethod
    def IS_CHANGED(cls, file):
        return towers.changed(KIND, file)

    def run(self, file):
        made = towers.load_latent_classifier(towers.find_file(KIND, file))
        return text_result(f"{len(made.labels)} classes: {', '.join(made.labels[:40])}", made)


class LoadImageClassifier:
    ID = "NullText_LoadImageClassifier"
    TITLE = "Load Image Classifier"
    CATEGORY = CATEGORY
    SEARCH_ALIASES = ["load classifier", "resnet", "imagenet", "torchvision", "image classification"]
    DESCRIPTION = base.describe(
        "Loads a classifier of pictures in safetensors (models/classifiers) of an architecture that torchvision or "
        "transformers can build; Classifier Guidance uses it on the decoded estimate.",
        SEARCH_ALIASES,
    )
    FUNCTION = "run"
    RETURN_TYPES = ("CLASSIFIER",)
    OUTPUT_TOOLTIPS = ("The classifier, with its labels.",)

    @classmethod
    def INPUT_TYPES(cls):
        found = towers.files(KIND, lambda meta: not meta.get("format", "").startswith("nulltext"))
        return {
            "required": {
                "file": base.choice(
                    found or _no_files(KIND),
                    "A safetensors file. Beside it may lie config.json "
                    "(transformers) or a .txt of the same name with one "
                    "label per line.",
                ),
                "architecture": (
                    "STRING",
                    {
                        "default": "auto",
                        "tooltip": "auto: from config.json, the file's metadata "
                        "or its name (resnet50-... for one); else "
                        "torchvision's name of the architecture.",
                    },
                ),
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, file):
        return True

    @classmethod
    def IS_CHANGED(cls, file, architecture):
        return towers.changed(KIND, file)

    def run(self, file, architecture):
        made = towers.load_image_classifier(towers.find_file(KIND, file), architecture.strip() or "auto")
        return text_result(
            f"{len(made.labels)} classes, pictures of {made.size} px: {', '.join(made.labels[:40])}", made
        )


NODES = (ClassifierGuidance, TrainLatentClassifier, LoadClassifier, LoadImageClassifier)
