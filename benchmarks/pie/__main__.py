"""PIE-Bench's table over a folder in its layout, in a git clone of this pack:

    make bench NAME=pie ARGS="FOLDER --checkpoint FILE"
    make bench NAME=pie ARGS="FOLDER --results NAME=FOLDER"

FOLDER holds mapping_file.json and annotation_images/ as PIE-Bench is published (Ju et al. 2310.01506): per image a
source and an edited prompt ([brackets] mark the words that differ), a blended word pair and a run-length mask of
what may change. With --checkpoint its own edits are made first (Invert Image, Prompt-to-Prompt with PIE-Bench's
settings: cross 0.4, self 0.6, local blend on the blend word, weight 2 on it) into --edits; with --results ready-made
edits under the same relative paths are measured. Every image's figures are kept, so that a run
resumes.

Metrics: PSNR, MSE x 1e4, SSIM x 1e2 and LPIPS x 1e3 of the images times the mask's complement, whole-picture masks
left out, as their code does. The networks come from this machine, and without them their columns hold "-": structure
distance x 1e3 with --dino, CLIP similarity (whole, and image times mask) with --clip (folders of the Hugging Face
checkpoints facebook/dino-vitb8 and openai/clip-vit-large-patch14), LPIPS with --lpips (a safetensors file with the
state dict of `lpips.LPIPS(net="squeeze")`).
"""

from __future__ import annotations

import argparse
import glob
import json
import sys
from pathlib import Path

import torch
from torch import Tensor

from ...samplers.measure import metrics
from ...samplers.measure.charts import from_picture, to_picture
from ..harness import OUTPUT, table, weights
from ..lab import InEngine
from .judges import Judges

#: figure -> its name in the table, in the order of the published ones
COLUMNS = {
    "structure": "distance e3",
    "psnr": "PSNR",
    "lpips": "LPIPS e3",
    "mse": "MSE e4",
    "ssim": "SSIM e2",
    "clip_whole": "CLIP whole",
    "clip_edited": "CLIP edited",
}
PLAIN = "without_local_blend.txt"
SCALE = {"mse": 1e4, "ssim": 1e2}


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
    return from_picture(picture).movedim(-1, 1)


def measure(item: dict, source: Tensor, edit: Tensor, judges: Judges) -> dict[str, float | None]:
    """One image's row; None where a metric has no meaning or no network."""
    mask = read_mask(item["mask"], source.shape[-1])
    row: dict[str, float | None] = dict.fromkeys(COLUMNS)
    if float(1 - mask.mean()) > 0:
        values = metrics.preservation(source, edit, mask)
        row |= {name: float(value[0]) * SCALE.get(name, 1) for name, value in values.items()}
        row["psnr"] = min(row["psnr"], 100.0)
        if judges.lpips is not None:
            row["lpips"] = 1e3 * float(judges.lpips(metrics.outside(source, mask), metrics.outside(edit, mask))[0])
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


def make_edits(checkpoint: Path, folder: Path, items: dict[str, dict], to: Path, size: int, steps: int) -> None:
    """Edits by the checkpoint in the embedded engine, saved under the source's relative path. The file PLAIN beside
    them names those that were refused with local blend and the weight, and made without."""
    lab = InEngine(steps, checkpoint)
    for done, item in enumerate(items.values()):
        path = (to / item["image_path"]).with_suffix(".png")
        if path.exists():
            continue
        with torch.inference_mode():
            picture = read_image(folder / "annotation_images" / item["image_path"], size)
            inversion = lab.invert(plain(item["original_prompt"]), picture)
            target = plain(item["editing_prompt"])
            try:
                image, _ = lab.edited(target, inversion, 7.5, **settings(item))
            except ValueError as error:  # a blended word that is written otherwise in the prompts
                print(f"  {item['image_path']} is made without local blend: {error}", flush=True)
                image, _ = lab.edited(target, inversion, 7.5, **settings({}))
                to.mkdir(parents=True, exist_ok=True)
                with open(to / PLAIN, "a", encoding="utf-8") as file:
                    file.write(f"{item['image_path']}\n")
        path.parent.mkdir(parents=True, exist_ok=True)
        to_picture(image.movedim(1, -1)).save(path)
        print(f"  edits: {done + 1}/{len(items)}", flush=True)


def without_blend(items: dict[str, dict], made: Path) -> int:
    """How many of these items' edits `make_edits` made without local blend."""
    path = made / PLAIN
    named = set(path.read_text(encoding="utf-8").splitlines()) if path.exists() else set()
    return sum(item["image_path"] in named for item in items.values())


def edit_of(item: dict, folder: Path) -> Path | None:
    """Where a folder of results holds an image's edit: under the source's relative path, or as PNG."""
    path = folder / item["image_path"]
    return next((p for p in (path, path.with_suffix(".png")) if p.is_file()), None)


def mean(rows: list[dict]) -> dict[str, float | None]:
    """Per figure over the rows that have it; None where none has."""
    found = {name: [row[name] for row in rows if row[name] is not None] for name in COLUMNS}
    return {name: sum(values) / len(values) if values else None for name, values in found.items()}


def arguments(argv: list[str]) -> tuple[argparse.Namespace, dict[str, dict], dict[str, Path]]:
    """What was asked, PIE-Bench's items by their key, and the folders of results by name."""
    parser = argparse.ArgumentParser(
        prog="make bench NAME=pie", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="PIE-Bench: mapping_file.json and annotation_images/")
    parser.add_argument(
        "--results", action="append", default=[], metavar="NAME=FOLDER", help="ready-made edits to measure"
    )
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="the Stable Diffusion checkpoint that edits")
    parser.add_argument("--edits", type=Path, help="where its edits go: a folder for each checkpoint")
    parser.add_argument("--size", type=int, default=512, help="pixels the checkpoint edits at")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--limit", type=int, help="only the first images")
    parser.add_argument("--dino", help="folder of facebook/dino-vitb8")
    parser.add_argument("--clip", help="folder of openai/clip-vit-large-patch14")
    parser.add_argument("--lpips", help="safetensors file of lpips.LPIPS(net='squeeze')")
    args = parser.parse_args(argv)
    mapping = args.folder / "mapping_file.json"
    if not mapping.is_file():
        parser.error(f"{mapping} is not there: name the folder that PIE-Bench unpacks to.")
    if args.checkpoint is None and not args.results:
        parser.error(
            "name the checkpoint that edits (--checkpoint FILE), or edits that are made (--results NAME=FOLDER)."
        )
    if args.checkpoint is not None and not args.checkpoint.is_file():
        parser.error(f"there is no file {args.checkpoint}")
    items = dict(list(json.loads(mapping.read_text(encoding="utf-8")).items())[: args.limit])
    results = {}
    for entry in args.results:
        name, equals, folder = entry.partition("=")
        if not equals:
            parser.error(f"--results {entry}: write NAME=FOLDER.")
        results[name] = Path(folder)
        missing = next((item for item in items.values() if edit_of(item, results[name]) is None), None)
        if missing is not None:
            parser.error(f"{name} has no edit of {missing['image_path']}.")
    if args.checkpoint is not None:
        args.weights = weights(args.checkpoint.parent, [glob.escape(args.checkpoint.name)])
        own = f"{args.folder.resolve().name}-{args.size}-{args.steps}-{args.weights}"
        args.edits = args.edits or OUTPUT / "pie" / own
    return args, items, results


def main(argv: list[str]) -> None:
    args, items, results = arguments(argv)
    torch.set_num_threads(1)
    judges, kept_at = Judges(args.dino, args.clip, args.lpips), OUTPUT / "pie.json"
    if args.checkpoint is not None:
        make_edits(args.checkpoint, args.folder, items, args.edits, args.size, args.steps)
        results = {f"Direct + P2P, {args.checkpoint.name} {args.weights}": args.edits, **results}
        if refused := without_blend(items, args.edits):
            print(f"{refused} of {len(items)} edits of Direct + P2P were made without local blend (see {PLAIN}).")
    OUTPUT.mkdir(parents=True, exist_ok=True)
    kept = json.loads(kept_at.read_text()) if kept_at.exists() else {}
    lines, figures = [], {}
    for name, folder in results.items():
        rows = []
        for item in items.values():
            path, source = edit_of(item, folder), args.folder / "annotation_images" / item["image_path"]
            files = "|".join(f"{p.resolve()}|{p.stat().st_mtime_ns}" for p in (source, path))
            mark = f"{files}|{args.dino}|{args.clip}|{args.lpips}"
            if mark not in kept:
                kept[mark] = measure(item, read_image(source), read_image(path), judges)
                kept_at.write_text(json.dumps(kept))
            rows.append(kept[mark])
        figures[name] = mean(rows)
        background = sum(row["psnr"] is not None for row in rows)
        lines.append([name, len(rows), background, *("-" if v is None else v for v in figures[name].values())])
    print(table(("method", "images", "with background", *COLUMNS.values()), lines))
    print(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1:])
