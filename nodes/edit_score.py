"""Edit Score: how well an edit kept what it should keep, and how well it shows what it should show."""

from __future__ import annotations

import torch

from ..engine.gradients import grad_mode
from ..engine.image_text import modules_of, ready, vision_features
from ..samplers.measure import metrics
from .base import IMAGE, MASK, Box, Output, Socket, Text, optional
from .clip_guidance import check_words
from .masked import check_pair
from .report import text_result


def similarity(image_text, images: torch.Tensor, prompt: str) -> torch.Tensor:
    """[B] of images [B, 3, H, W] in 0..1 to the sentence, on the CPU."""
    wanted, device = image_text.embed_text([prompt]), ready(image_text)
    with grad_mode(*modules_of(image_text)), torch.no_grad():
        seen = image_text.embed_image(images.clone().to(device))
    return metrics.clip_similarity(seen.cpu(), wanted.cpu())


class EditScore(Box):
    ID, TITLE, CATEGORY = "NullText_EditScore", "Edit Score", "NullText/attention"
    SEARCH_ALIASES = ["psnr", "ssim", "compare images", "clip score", "metrics", "pie-bench"]
    DESCRIPTION = (
        "Measures an edit against its source: PSNR, SSIM and MSE, outside the mask if there is one, structure "
        "distance, and with an image-text model the similarity to a sentence. The masked figures are PIE-Bench's: both "
        "pictures are 0 under the mask, which counts as equal, so that a small background raises PSNR. No network "
        "calls of the diffusion model."
    )
    OUTPUT_NODE = True
    INPUTS = (
        IMAGE("The picture before the edit.", name="source"),
        IMAGE("The picture after the edit, of the same size and as many.", name="edit"),
        *optional(
            MASK("1 where the edit may change the picture; measured outside it. Not read where it covers everything."),
            Socket(
                "clip_vision",
                "CLIP_VISION",
                "A CLIP vision model: structure from its features. Without it the structure distance compares patches "
                "of pixels.",
            ),
            Socket(
                "image_text",
                "IMAGE_TEXT",
                "From Image-Text Model (CLIP): for the similarity of edit and prompt. PIE-Bench's is CLIP ViT-L/14.",
            ),
            Text("prompt", "", "What the edit shall show, in a sentence; read where image_text is wired."),
        ),
    )
    OUTPUTS = (
        Output("STRING", "All figures, a line for each image of the batch and their mean.", "report"),
        Output(
            "FLOAT", "Mean PSNR in dB, outside the mask if it leaves anything; 100 stands for identical images.", "psnr"
        ),
        Output("FLOAT", "Mean SSIM, outside the mask if it leaves anything.", "ssim"),
        Output(
            "FLOAT",
            "Mean squared error over all pixels. Pixels under the mask count as unchanged; a mask over everything is "
            "ignored.",
            "mse",
        ),
        Output("FLOAT", "Mean structure distance x 1000.", "structure_distance"),
    )

    def run(self, source, edit, mask=None, clip_vision=None, image_text=None, prompt=""):
        check_pair(source, edit)
        prompt = prompt.strip()
        if image_text is not None and not prompt:
            raise ValueError("The similarity needs a sentence: write what the edit shall show into prompt.")
        notices = check_words(image_text, [prompt]) if image_text is not None else []
        a, b = (t[..., :3].movedim(-1, 1).float().cpu() for t in (source, edit))
        a = a.expand(len(b), -1, -1, -1)
        area = None
        if mask is not None:
            try:
                area = metrics.region(mask.cpu(), a)
            except ValueError:  # an edit of everything, a background for one
                notices.append("Notice: the mask covers the whole picture, so all of it is measured")
        if area is not None:
            if len(area) not in (1, len(b)):
                raise ValueError(
                    f"There are {len(area)} masks for {len(b)} edits: wire one mask, or one for each edit."
                )
        rows = metrics.preservation(a, b, area)
        if clip_vision is None:
            features, of = [metrics.patch_features(t) for t in (a, b)], "patches of pixels"
        else:
            features, of = [vision_features(clip_vision, t) for t in (a, b)], "CLIP vision"
        if image_text is not None:
            rows["similarity"] = similarity(image_text, b, prompt)
        outside = "" if area is None else " outside the mask"
        rows["structure"] = 1e3 * metrics.structure_distance(*features)
        rows["psnr"] = rows["psnr"].clamp(max=100)
        mean = {name: float(value.mean()) for name, value in rows.items()}
        text = (
            f"PSNR {mean['psnr']:.2f} dB, SSIM {mean['ssim']:.4f}, MSE {mean['mse']:.2e}{outside}\n"
            f"structure distance {mean['structure']:.3f} x 1e-3 ({of}; PIE-Bench's tables use DINO)"
        )
        text += "".join(f"\n{notice}" for notice in notices)
        if outside:
            text += f"\nwhole picture: PSNR {float(metrics.psnr(a, b).clamp(max=100).mean()):.2f} dB"
        if "similarity" in rows:
            text += f"\nsimilarity to the prompt {mean['similarity']:.2f}"
        if len(b) > 1:
            text += "".join(
                f"\n{i + 1}: PSNR {float(rows['psnr'][i]):.2f} dB, SSIM {float(rows['ssim'][i]):.4f}"
                for i in range(len(b))
            )
        return text_result(text, text, mean["psnr"], mean["ssim"], mean["mse"], mean["structure"])


NODES = (EditScore,)
