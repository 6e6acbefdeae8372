"""PIE-Bench's table over a folder in its layout: `python demo pie FOLDER [--results NAME=FOLDER ...]`.

FOLDER holds mapping_file.json and annotation_images/ as PIE-Bench is published (Ju et al. 2310.01506): per image a
source and an edited prompt ([brackets] mark the words that differ), a blended word pair and a run-length mask of
what may change. Without --results the checkpoint's own edits are made first (Invert Image, Prompt-to-Prompt with
PIE-Bench's settings: cross 0.4, self 0.6, local blend on the blend word, weight 2 on it) into --edits; with
--results ready-made edits under the same relative paths are measured. Every image's figures are kept, so that a run
resumes.

Metrics: PSNR, MSE x 1e4 and SSIM x 1e2 of the images times the mask's complement, whole-picture masks left out, as
their code does. Structure distance x 1e3 with --dino, CLIP similarity (whole, and image times mask) with --clip:
folders of Hugging Face checkpoints on this machine (facebook/dino-vitb8, openai/clip-vit-large-patch14). Without
them those columns stay empty. LPIPS is not measured: its weights are no part of what ComfyUI brings.
"""
from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..samplers import metrics
from .harness import OUTPUT, table

COLUMNS = ("structure", "psnr", "mse", "ssim", "clip_whole", "clip_edited")
SCALE = {"structure": 1e3, "mse": 1e4, "ssim": 1e2}


def read_mask(runs: list[int], size: int = 512) -> Tensor:
    """[1, 1, size, size] from run lengths (start, length, start, length, ...) over the flat picture; 1: may change.

    The outermost pixels are set, as PIE-Bench does against annotation errors at the border."""
    flat = torch.zeros(size * size)
    for start, length in zip(runs[::2], runs[1::2], strict=True):
        flat[start : start + length] = 1
    mask = flat.view(1, 1, size, size)
    mask[..., 0, :] = mask[..., -1, :] = mask[..., :, 0] = mask[..., :, -1] = 1
    return mask


def read_image(path: Path, size: int = 512) -> Tensor:
    """[1, 3, size, size] in 0..1; results that stand at the right of a strip of pictures are cut out, as PIE-Bench
    does."""
    from PIL import Image

    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    if picture.width > picture.height:
        picture = picture.crop((picture.width - picture.height, 0, picture.width, picture.height))
    picture = picture.resize((size, size))
    values = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return values.view(1, size, size, 3).movedim(-1, 1).float() / 255


class Judges:
    """The networks that are on this machine."""

    def __init__(self, dino: str | None, clip: str | None):
        self.dino = self.clip = None
        if dino:
            from transformers import ViTModel

            self.dino = ViTModel.from_pretrained(dino, local_files_only=True, add_pooling_layer=False).eval()
        if clip:
            from transformers import CLIPModel, CLIPTokenizer

            self.clip = CLIPModel.from_pretrained(clip, local_files_only=True).eval()
            self.tokenizer = CLIPTokenizer.from_pretrained(clip, local_files_only=True)

    @torch.no_grad()
    def keys(self, image: Tensor) -> Tensor:
        """[1, T, D] keys of the last layer at 224 pixels (DINO's normalisation)."""
        image = F.interpolate(image, size=(224, 224), mode="bicubic", antialias=True).clamp(0, 1)
        image = (image - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(
            3, 1, 1
        )
        kept = []
        layer = self.dino.encoder.layer[-1].attention.attention.key
        handle = layer.register_forward_hook(lambda module, args, out: kept.append(out))
        try:
            self.dino(image, interpolate_pos_encoding=True)
        finally:
            handle.remove()
        return kept[0]

    @torch.no_grad()
    def similarity(self, image: Tensor, text: str) -> float:
        image = F.interpolate(image, size=(224, 224), mode="bicubic", antialias=True).clamp(0, 1)
        mean, std = (
            torch.tensor(v).view(3, 1, 1)
            for v in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
        )
        tokens = self.tokenizer([text], padding=True, truncation=True, return_tensors="pt")
        return float(
            metrics.clip_similarity(
                self.clip.get_image_features((image - mean) / std), self.clip.get_text_features(**tokens)
            )[0]
        )


def measure(item: dict, source: Tensor, edit: Tensor, judges: Judges) -> dict[str, float | None]:
    """One image's row; None where a metric has no meaning or no network."""
    mask = read_mask(item["mask"], source.shape[-1])
    row: dict[str, float | None] = dict.fromkeys(COLUMNS)
    if float(1 - mask.mean()) > 0:
        values = metrics.preservation(source, edit, mask)
        row |= {name: float(value[0]) * SCALE.get(name, 1) for name, value in values.items()}
        row["psnr"] = min(row["psnr"], 100.0)
    if judges.dino is not None:
        row["structure"] = 1e3 * float(metrics.structure_distance(judges.keys(source), judges.keys(edit))[0])
    if judges.clip is not None:
        text = plain(item["editing_prompt"])
        row["clip_whole"] = judges.similarity(edit, text)
        row["clip_edited"] = judges.similarity(edit * mask, text)
    return row


def plain(prompt: str) -> str:
    """The prompt without the brackets around what differs."""
    return prompt.replace("[", "").replace("]", "")


def settings(item: dict) -> dict[str, str | float]:
    """PIE-Bench's prompt-to-prompt: local blend on the blended word pair, weight 2 on the edit's word."""
    words = item.get("blended_word", "").split()
    options = {"cross_steps": 0.4, "self_steps": 0.6}
    if len(words) == 2:
        options |= {"blend_words": ", ".join(dict.fromkeys(words)), "weights": f"{words[1]}: 2"}
    return options


def make_edits(folder: Path, items: dict[str, dict], to: Path, size: int, steps: int) -> None:
    """Edits by the checkpoint in the embedded engine, saved under the source's relative path."""
    from PIL import Image

    from ..nodes.bridge.engine import sigmas_of
    from ..nodes.bridge.invert import invert
    from ..nodes.bridge.prompt_to_prompt import run_guider
    from ..nodes.prompt_to_prompt import prepare
    from . import _engine as engine

    model, clip, vae = engine.load()
    sigmas, empty = sigmas_of(model, "normal", steps), engine.prompt(clip, "")
    for done, item in enumerate(items.values()):
        path = (to / item["image_path"]).with_suffix(".png")
        if path.exists():
            continue
        with torch.inference_mode():
            latent = {
                "samples": engine.encode(vae, read_image(folder / "annotation_images" / item["image_path"], size))
            }
            source, edited = (engine.prompt(clip, plain(item[name])) for name in ("original_prompt", "editing_prompt"))
            inversion = invert(model, {"positive": source}, latent, sigmas, "ddim", cache=False)[0]
            try:
                guider = prepare("pie", model, edited, empty, 7.5, None, inversion, (), False, **settings(item))[0]
            except ValueError:  # a blended word that is written otherwise in the prompts
                guider = prepare(
                    "pie", model, edited, empty, 7.5, None, inversion, (), False, cross_steps=0.4, self_steps=0.6
                )[0]
            image = engine.decode(vae, run_guider(guider, None, sigmas, 0).edits)[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.mul(255).round().byte().movedim(0, -1).numpy()).save(path)
        print(f"  edits: {done + 1}/{len(items)}", flush=True)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python demo pie", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="PIE-Bench: mapping_file.json and annotation_images/")
    parser.add_argument(
        "--results", action="append", default=[], metavar="NAME=FOLDER", help="ready-made edits to measure"
    )
    parser.add_argument("--edits", type=Path, default=OUTPUT / "pie", help="where the checkpoint's own edits go")
    parser.add_argument("--size", type=int, default=512, help="pixels the checkpoint edits at")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--limit", type=int, help="only the first images")
    parser.add_argument("--dino", help="folder of facebook/dino-vitb8")
    parser.add_argument("--clip", help="folder of openai/clip-vit-large-patch14")
    args = parser.parse_args(argv)
    mapping = args.folder / "mapping_file.json"
    if not mapping.is_file():
        parser.error(f"{mapping} is not there: name the folder that PIE-Bench unpacks to.")
    torch.set_num_threads(1)
    items = dict(list(json.loads(mapping.read_text(encoding="utf-8")).items())[: args.limit])
    results = dict(entry.split("=", 1) for entry in args.results)
    if not results:
        make_edits(args.folder, items, args.edits, args.size, args.steps)
        results = {"Direct + P2P": str(args.edits)}
    judges, kept_at = Judges(args.dino, args.clip), OUTPUT / "pie.json"
    OUTPUT.mkdir(parents=True, exist_ok=True)
    kept = json.loads(kept_at.read_text()) if kept_at.exists() else {}
    lines, figures = [], {}
    for name, folder in results.items():
        rows = []
        for item in items.values():
            path = next(
                (
                    p
                    for p in (
                        Path(folder) / item["image_path"],
                        (Path(folder) / item["image_path"]).with_suffix(".png"),
                    )
                    if p.is_file()
                ),
                None,
            )
            if path is None:
                parser.error(f"{name} has no edit of {item['image_path']}.")
            mark = f"{path.resolve()}|{path.stat().st_mtime_ns}|{bool(args.dino)}{bool(args.clip)}"
            if mark not in kept:
                source = read_image(args.folder / "annotation_images" / item["image_path"])
                kept[mark] = measure(item, source, read_image(path), judges)
                kept_at.write_text(json.dumps(kept))
            rows.append(kept[mark])
        found = {c: [row[c] for row in rows if row[c] is not None] for c in COLUMNS}
        mean = {c: sum(v) / len(v) if v else None for c, v in found.items()}
        lines.append([name, len(rows), len(found["psnr"]), *("" if mean[c] is None else mean[c] for c in COLUMNS)])
        figures[name] = mean
    header = (
        "method",
        "images",
        "with background",
        "distance e3",
        "PSNR",
        "MSE e4",
        "SSIM e2",
        "CLIP whole",
        "CLIP edited",
    )
    print(table(header, lines))
    print(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1:])
