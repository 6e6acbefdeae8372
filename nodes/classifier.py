"""Classifier guidance, and the training of a classifier of noisy latents for it."""

from __future__ import annotations

import torch

from ..engine import classifiers, comfy, files, terms, tuning_set
from ..engine.comfy import Progress, process_of
from ..engine.fingerprint import fingerprint
from ..engine.streamed import settled
from ..samplers.measure.charts import line_chart, smoothed
from ..samplers.networks.latent_classifier import LatentClassifier, class_index, of_decoded, train_latent_classifier
from .base import MODEL, TRAINING_SEED, VAE, Boolean, Box, Choice, Float, Int, Output, Socket, Text, optional
from .guidance import (
    BOUND,
    CATEGORY,
    DECODER,
    EVERY,
    LATENT,
    MODES,
    NETWORK,
    SPAN,
    VARIANCE,
    attached,
    scale,
    strength,
    term,
)
from .report import text_result

AUTO = "automatic"
KIND = "classifiers"


class ClassifierGuidance(Box):
    ID, TITLE, CATEGORY = "NullText_ClassifierGuidance", "Classifier Guidance", CATEGORY
    SEARCH_ALIASES = ["classifier guidance", "class conditional", "Dhariwal Nichol", "guided diffusion"]
    DESCRIPTION = (
        "Pulls every sampling step towards a class by the gradient of a classifier (Dhariwal & Nichol, arXiv "
        "2105.05233). Patches a MODEL for any sampler; several guidance nodes add up. At scale 1 with a perfect "
        "classifier it samples the class; higher scales sharpen."
    )
    INPUTS = (
        MODEL,
        Socket(
            "classifier", "CLASSIFIER", "From Train Latent Classifier, Load Latent Classifier or Load Image Classifier."
        ),
        Text("class_name", "", "One of the classifier's own labels, by name. Left empty, the error lists them."),
        scale(
            1.0,
            1000.0,
            "1: the class as a perfect classifier would sample it; the paper took up to 10 without a "
            "class-conditional model. Negative: away from the class.",
        ),
        *SPAN,
        Choice(
            "gradient_mode",
            [AUTO, LATENT, DECODER, NETWORK],
            "Automatic: on the latent for a latent classifier, through the decoder for a classifier of pictures. "
            "Through the network is exact for a classifier of pictures, and the most expensive.",
        ),
        BOUND,
        EVERY,
        *optional(VAE("The VAE that belongs to the model; only a classifier of pictures needs it."), VARIANCE),
    )
    OUTPUTS = (Output("MODEL", "The guided clone; the model itself at scale 0."),)

    def run(self, model, classifier, class_name, gradient_mode, vae=None, **acts):
        index, acts = class_index(classifier.labels, class_name), strength(model, **acts)
        name = classifier.labels[index]
        lines = [f"Towards {name!r} at scale {acts['scale']:g}."]
        if isinstance(classifier, LatentClassifier):
            made = self._latent(model, classifier, name, gradient_mode, acts)
            if classifier.fingerprint and classifier.fingerprint != fingerprint(model)["structure"]:
                lines.append(
                    "Notice: the classifier was trained for a model of another architecture; if their VAEs differ "
                    "too, its gradients mean nothing."
                )
        else:
            made = self._picture(model, classifier, name, index, gradient_mode, acts, vae)
        return attached(model, made, lines)

    def _latent(self, model, classifier, name, mode, acts):
        if mode not in (AUTO, LATENT):
            raise ValueError(
                "This classifier judges noisy latents: set gradient_mode to automatic, there is nothing to decode."
            )
        process, channels = process_of(model), model.get_model_object("latent_format").latent_channels
        if classifier.net.config["in_channels"] != channels:
            raise ValueError(
                f"This classifier was trained on latents of {classifier.net.config['in_channels']} channels, but this "
                f"model has {channels}: train one for this model."
            )

        def probabilities(x, sigma, _denoised):
            return classifier.labels, classifier(x, sigma, process).softmax(1)

        return term(
            classifier.log_likelihood(name, process),
            f"class {name}",
            "latent",
            acts,
            modules=(classifier,),
            probabilities=probabilities,
        )

    def _picture(self, model, classifier, name, index, mode, acts, vae):
        if mode == LATENT:
            raise ValueError(
                "This classifier judges clean pictures, not latents: set gradient_mode to automatic (through the "
                "decoder), or train a latent classifier for this model."
            )
        if vae is None:
            raise ValueError(
                "This classifier judges pictures: wire the VAE that belongs to the model, so that the estimate can be "
                "decoded."
            )
        vae = settled(vae)
        decode = terms.decoder(model, vae)

        def probabilities(_x, _sigma, denoised):
            return classifier.labels, classifier(decode(denoised)).softmax(1)

        return term(
            of_decoded(classifier, index, decode),
            f"class {name}",
            MODES.get(mode, "decoder"),
            acts,
            modules=(classifier, vae.first_stage_model),
            patchers=(vae.patcher,),
            probabilities=probabilities,
        )


class TrainLatentClassifier(Box):
    ID, TITLE, CATEGORY = "NullText_TrainLatentClassifier", "Train Latent Classifier", CATEGORY
    SEARCH_ALIASES = ["train classifier", "noisy classifier", "time-dependent classifier", "noise-aware classifier"]
    DESCRIPTION = (
        "Trains a noise-aware classifier of latents from a folder of pictures with one sub-folder per class, for "
        "Classifier Guidance (arXiv 2105.05233, section 4), and saves it with its labels into ComfyUI's "
        "output/classifiers folder."
    )
    OUTPUT_NODE = True
    INPUTS = (
        MODEL,
        VAE("The VAE that belongs to the model: it encodes the pictures."),
        Text(
            "folder",
            "classes",
            "A folder inside ComfyUI's input folder, with one sub-folder of pictures per class; their names become "
            "the labels.",
        ),
        Int(
            "size",
            128,
            "Pictures are cropped to a square and scaled to this many pixels: the size that you will sample.",
            32,
            2048,
        ),
        Int("train_steps", 600, "Training steps. More help until the loss curve is flat.", 1, 100000),
        Int("batch", 32, "Latents per step.", 2, 1024),
        Float("learning_rate", 0.001, "Peak learning rate; it warms up and decays.", 1e-06, 0.1, 0.0001),
        Boolean("mirror", False, "Also train on mirror images. Off where left and right matter."),
        TRAINING_SEED,
        Text("file_name", "my_classifier", "Name of the file in output/classifiers. A number is added if it exists."),
    )
    OUTPUTS = (
        Output("CLASSIFIER", "The trained classifier.", "classifier"),
        Output("IMAGE", "Loss and accuracy over the steps.", "loss_curve"),
        Output("STRING", "The file that was written.", "path"),
    )

    @classmethod
    def IS_CHANGED(cls, folder=None, **_):
        return "" if not folder else tuning_set.changed(folder)

    def run(self, model, vae, folder, size, train_steps, batch, learning_rate, mirror, training_seed, file_name):
        labels, pictures, targets = classifiers.class_folder(folder)
        path = files.new_file(KIND, file_name)
        progress = Progress(len(pictures) + train_steps)
        latents = classifiers.encode_pictures(model, vae, pictures, size, progress)
        sigmas = comfy.training_levels(model)
        curves = {"loss": [], "accuracy": []}

        def step(_i, loss, accuracy):
            curves["loss"].append(loss)
            curves["accuracy"].append(accuracy)
            progress.tick(1)

        with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng():
            torch.manual_seed(training_seed)
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
                seed=training_seed,
                callback=step,
            )
        classifiers.write_latent_classifier(path, made)
        tail = max(1, train_steps // 10)
        loss, accuracy = (sum(curves[k][-tail:]) / len(curves[k][-tail:]) for k in ("loss", "accuracy"))
        text = (
            f"Saved as {path}: {len(labels)} classes "
            f"({', '.join(labels[:8])}{', ...' if len(labels) > 8 else ''}), {len(pictures)} pictures, "
            f"{train_steps} steps; at the end loss {loss:.3f} and {accuracy:.0%} right over all noise levels "
            "(including pure noise, where no classifier can know)."
        )
        chart = line_chart(
            "training (all noise levels)", {name: smoothed(curves[name]) for name in ("loss", "accuracy")}, low=0.0
        )
        return text_result(text, made, chart, str(path))


NODES = (ClassifierGuidance, TrainLatentClassifier)
