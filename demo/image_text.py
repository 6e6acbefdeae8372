"""Trains the image-text model of the demo scenes: `python tools image_text --minutes 8 --out FILE`.

Stage 1 (60 % of the time): image tower and text tower, symmetric InfoNCE over scenes and captions, beside it the
cross-entropy over all short captions of a kind, and of every attribute by a layer that is thrown away. Captions lose
parts at random, down to "a red circle"; pictures are shifted, blurred and made noisy, because guidance will show the
tower half-finished estimates. Stage 2: the noise-aware tower on noisy latents of the demo's autoencoder
learns to say what the frozen image tower says of the clean picture (SDG, 2112.05744, section 3.3: no captions,
uniform timesteps; there as here it begins as a trained network, here that of `python tools attributes`).

Both stages save into .training/ every minute and go on from there when called again; FILE is the fp16 model with its
word list, configuration and figures, ready for the pack.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from ..samplers.networks.image_text import ImageText, TextTower
from . import attributes, captions, nets, pool, scenes
from .latents import generator
from .train_autoencoder import load_autoencoder
from .training import DEVICE, STATE, Trainer, precision

EMBEDDING, IMAGE_SIZE = 128, 64
WORDS = {word: i + 2 for i, word in enumerate(sorted(captions.TOKENS))}  # 0 is the unknown word, 1 padding
NOISY = {"out": EMBEDDING} | attributes.TRUNK
IMAGE = NOISY | {"in_channels": 3, "size": IMAGE_SIZE, "stem_stride": 4, "noise_aware": False}
TEXT = {"rows": len(WORDS) + 2, "out": EMBEDDING}
_CONTENT = [i for i, name in enumerate(captions._FORM) if name in ("a", "colour0", "shape0")]
_BEHIND = [i for i, name in enumerate(captions._FORM) if name in ("texture", "background", "end")]

_width = max(len(p.split()) for p in captions.PHRASES)
_PHRASES = torch.tensor([[WORDS[w] for w in p.split()] + [-1] * (_width - len(p.split())) for p in captions.PHRASES])


def word_rows(phrases: Tensor, form: Tensor, length: int = 32) -> Tensor:
    """Phrase indices [B, 16] and forms [B] (captions.phrases) -> word rows [B, length], what ImageText.rows gives for
    the same captions as text."""
    words = torch.where(phrases[..., None] >= 0, _PHRASES.to(phrases.device)[phrases.clamp(min=0)], -1)
    joined = torch.full_like(words[..., :1], -1)
    joined[:, 5, 0] = torch.where((form == 1) & (phrases[:, 5] >= 0), WORDS["with"], -1)
    flat = torch.cat([joined, words], 2).flatten(1)
    order = (flat < 0).long().argsort(dim=1, stable=True)
    rows = flat.gather(1, order)[:, :length]
    return torch.where(rows < 0, TextTower.PAD, rows)


def training_rows(batch: scenes.Scenes, draws: torch.Generator) -> Tensor:
    """Captions for training: as the diffusion's, but a third of the one-object ones say no more than colour and
    shape, and some captions name the background alone."""
    phrases, form = captions.phrases(batch, draws)
    n, device = len(batch), phrases.device

    def chance(p):
        return torch.rand(n, generator=draws, device=device) < p

    bare = (batch.count == 1) & chance(0.35)
    keep = torch.zeros(phrases.shape[1], dtype=torch.bool, device=device)
    keep[_CONTENT] = True
    drop_colour, drop_shape = bare & chance(0.12), bare & chance(0.12)
    plain, _ = captions.phrases(batch)  # form 0, so that the columns are known
    short = torch.where(keep, plain, -1)
    short[:, _CONTENT[1]] = torch.where(drop_colour & ~drop_shape, -1, short[:, _CONTENT[1]])
    short[:, _CONTENT[2]] = torch.where(drop_shape & ~drop_colour, -1, short[:, _CONTENT[2]])
    behind = chance(0.1) & ~bare
    only = torch.zeros_like(keep)
    only[_BEHIND] = True
    phrases = torch.where(behind[:, None], torch.where(only, plain, -1), phrases)
    phrases = torch.where(bare[:, None], short, phrases)
    return word_rows(phrases, torch.where(bare | behind, 0, form))


def disturbed(image: Tensor, draws: torch.Generator) -> Tensor:
    """[B, 3, 128, 128] or [B, 3, 64, 64] -> [B, 3, 64, 64]: zoomed and shifted a little, half of them blurred, some
    noise."""
    n, device = len(image), image.device

    def u(*shape):
        return torch.rand(n, *shape, generator=draws, device=device)

    zoom, move = 0.82 + 0.18 * u(1, 1), 0.1 * (2 * u(2, 1) - 1)
    theta = torch.cat([torch.cat([zoom, 0 * zoom], 2), torch.cat([0 * zoom, zoom], 2)], 1)
    grid = F.affine_grid(torch.cat([theta, move], 2), list(image.shape), align_corners=False)
    out = F.adaptive_avg_pool2d(F.grid_sample(image, grid, padding_mode="border", align_corners=False), IMAGE_SIZE)
    for factor, share in ((2, 0.25), (4, 0.2), (8, 0.08)):
        coarse = F.interpolate(F.avg_pool2d(out, factor), IMAGE_SIZE, mode="bilinear", align_corners=False)
        out = torch.where(u()[:, None, None, None] < share, coarse, out)
    noise = 0.12 * u(1, 1, 1) * (u(1, 1, 1) < 0.5) * torch.randn(out.shape, generator=draws, device=device)
    return (out + noise).clamp(-0.1, 1.1)


def info_nce(u: Tensor, v: Tensor, scale: Tensor | float) -> Tensor:
    """Symmetric cross-entropy of matching rows u, v [B, D]."""
    logits = scale * F.normalize(u.float(), dim=-1) @ F.normalize(v.float(), dim=-1).T
    target = torch.arange(len(u), device=u.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


@torch.no_grad()
def retrieval(embed: Tensor, model: ImageText, batch: scenes.Scenes) -> dict[str, float]:
    """How often the nearest of all 48 captions "a <colour> <shape>" has the right colour, shape, both ("pair"), for
    one-object scenes."""
    names = [f"a {c} {s}" for c in scenes.COLOURS for s in scenes.SHAPES]
    found = (F.normalize(embed, dim=-1) @ F.normalize(model.embed_text(names), dim=-1).T).argmax(1)
    colour = found // len(scenes.SHAPES) == batch.colour[:, 0]
    shape = found % len(scenes.SHAPES) == batch.shape[:, 0]
    return {
        "colour": float(colour.float().mean()),
        "shape": float(shape.float().mean()),
        "pair": float((colour & shape).float().mean()),
    }


def pair_accuracy(embed: Tensor, model: ImageText, batch: scenes.Scenes) -> float:
    """How often the right one of all 48 captions is the nearest."""
    return retrieval(embed, model, batch)["pair"]


class ClassCaptions:
    """Every "a <colour> <shape>" and every "<texture> <background> background": negatives that a picture meets at each
    step, which teaches far more per picture than the few that share its batch. The unseen pairs are no negatives: their
    pictures never come, and a caption that is always wrong is unlearnt."""

    def __init__(self, model: ImageText):
        self.shown = ~scenes.UNSEEN_TABLE.flatten().to(model.log_scale.device)
        self.pairs = model.rows([f"a {c} {s}" for c in scenes.COLOURS for s in scenes.SHAPES])
        self.grounds = model.rows([f"{t} {b} background" for t in scenes.TEXTURES for b in scenes.BACKGROUNDS])

    def loss(self, model: ImageText, image: Tensor, batch: scenes.Scenes, scale: Tensor) -> Tensor:
        """Cross-entropy of the embeddings [B, D] over either list; the pairs count for one-object scenes."""

        def over(rows, target, shown=None):
            logits = scale * F.normalize(image.float(), dim=-1) @ F.normalize(model.text(rows).float(), dim=-1).T
            logits = logits if shown is None else logits.where(shown, -torch.inf)
            return F.cross_entropy(logits, target, reduction="none")

        one = (batch.count == 1).float()
        pair = over(self.pairs, batch.colour[:, 0] * len(scenes.SHAPES) + batch.shape[:, 0], self.shown)
        ground = over(self.grounds, batch.texture * len(scenes.BACKGROUNDS) + batch.background)
        return (pair * one).sum() / one.sum().clamp(min=1) + 0.5 * ground.mean()


def train_towers(model: ImageText, minutes: float, batch: int, device: torch.device, folder: Path) -> ImageText:
    model.reader = torch.nn.Linear(EMBEDDING, attributes.OUT).to(device)  # for training alone
    trainer = Trainer("image_text", model, minutes, lr=1e-3, ema=0.995, folder=folder, weight_decay=1e-3, warmup=100)
    draws = generator(device, trainer.samples + 3)
    test = scenes.sample(256, generator(device, 13), "held_out", two=0)
    pictures = scenes.draw(test)[0]
    named = ClassCaptions(model)
    size = 128 if device.type == "cuda" else IMAGE_SIZE  # drawing costs a CPU as much as the tower

    def step(_):
        scene = scenes.sample(batch, draws)
        with precision(device):
            image = model.embed_image(disturbed(scenes.draw(scene, size)[0], draws))
            text = model.text(training_rows(scene, draws))
        scale = model.log_scale.exp().clamp(max=100)
        pairs, classes = info_nce(image, text, scale), named.loss(model, image, scene, scale)
        read = attributes.loss(model.reader(image.float()), scene)
        return {"loss": pairs + classes + 0.5 * read, "captions": pairs, "classes": classes, "read": read}

    def report():
        with torch.no_grad():
            shares = retrieval(trainer.average.embed_image(pictures), trainer.average, test)
        return " ".join(f"{name} {share:.1%}" for name, share in shares.items()) + " of 256 held-out scenes"

    out = trainer.run(step, batch, report)
    del out.reader, model.reader
    return out


@torch.no_grad()
def clean_embeddings(model: ImageText, pictures: Tensor) -> Tensor:
    """What the image tower says of pictures [N, 3, 64, 64] uint8: [N, D]."""
    return torch.cat([model.embed_image(part.float() / 255).float() for part in pictures.split(256)])


def train_noisy(
    model: ImageText, autoencoder: nn.Module, minutes: float, batch: int, size: int, device: torch.device, folder: Path
) -> nn.Module:
    trainer = Trainer("image_text_noisy", model.noisy, minutes, lr=1e-3, ema=0.995, folder=folder, warmup=100)
    draws = generator(device, trainer.samples + 4)
    sigma = nets.sigmas().to(device)
    test = scenes.sample(256, generator(device, 13), "held_out", two=0)
    latents = pool.encode(test, autoencoder)[0]

    def scaled(x0, s, noise):
        return (x0 + s * noise) * (1 + s * s) ** -0.5

    seen = pool.make(size, autoencoder, generator(device, 31), folder)
    seen = seen[~scenes.unseen_pair(seen.scenes)]
    clean_all = clean_embeddings(model, seen.pictures)

    def step(_):
        index = torch.randint(len(seen), (batch,), generator=draws, device=device)
        x0, clean = seen.latents[index], clean_all[index]
        s = sigma[torch.randint(1000, (batch,), generator=draws, device=device)]
        x = scaled(x0, s[:, None, None, None], torch.randn(x0.shape, generator=draws, device=device))
        with precision(device):
            noisy = trainer.net(x, s)
        agreement = F.cosine_similarity(noisy.float(), clean.float(), dim=-1).mean()
        return {"loss": info_nce(noisy, clean, model.log_scale.exp().clamp(max=100)), "cos": agreement}

    def report():
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)).to(device)
        with torch.no_grad():
            look = lambda s: trainer.average(scaled(latents, s, noise), torch.full((256,), s, device=device))
            shares = [pair_accuracy(look(s), model, test) for s in (0.1, 0.5, 1.0, 2.0, 4.0)]
        return "colour and shape right at sigma .1 .5 1 2 4: " + " ".join(f"{s:.1%}" for s in shares)

    return trainer.run(step, batch, report)


@torch.no_grad()
def accuracies(model: ImageText, device: torch.device) -> dict[str, str]:
    """`retrieval` on 512 held-out scenes, and on as many of pairs that no training shows ("_unseen")."""
    figures = {}
    for split, suffix, seed in (("held_out", "", 17), ("unseen", "_unseen", 19)):
        test = scenes.sample(512, generator(device, seed), split, two=0)
        shares = retrieval(model.embed_image(scenes.draw(test)[0]), model, test)
        figures |= {f"{name}_accuracy{suffix}": f"{share:.4f}" for name, share in shares.items()}
    return figures


def export(model: ImageText, path: Path, notes: dict[str, str]) -> None:
    """The model as one fp16 safetensors file that the pack loads."""
    print(notes, flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().half().contiguous().cpu() for k, v in model.state_dict().items()}
    save_file(state, path, model.metadata() | notes)
    print(f"image-text model: {path} ({path.stat().st_size / 1e6:.2f} MB)", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=None, help="for both stages together")
    parser.add_argument("--device", **DEVICE)
    parser.add_argument("--batch", type=int, default=None)
    parser.add_argument("--state", type=Path, default=STATE, help="where the stages are kept")
    parser.add_argument("--out", type=Path, required=True, help="the fp16 model to write")
    parser.add_argument("--pool", type=int, default=None, help="scenes drawn and encoded for the noise-aware tower")
    parser.add_argument("--stage", choices=("all", "towers", "noisy"), default="all")
    args = parser.parse_args()
    device = args.device
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    minutes = args.minutes or (8 if device.type == "cuda" else 120)
    batch = args.batch or (1024 if device.type == "cuda" else 96)
    args.pool = args.pool or (100_000 if device.type == "cuda" else 10_000)
    with_noisy = args.stage != "towers"
    if with_noisy:
        attributes.trained(args.state)  # refused now, not after the first stage
    towers = ImageText(WORDS, IMAGE, TEXT, image_size=IMAGE_SIZE).to(device)
    trunk = (args.state / "attributes.safetensors").exists()
    autoencoder = load_autoencoder(device, args.state) if with_noisy or trunk else None
    if trunk:
        seen = pool.make(args.pool, autoencoder, generator(device, 31), args.state)
        share = attributes.start_pictures(towers.image, attributes.trained(args.state).to(device), seen)
        print(f"image tower: from the trunk, {share:.1%} of its stem from pictures", flush=True)
    part = {"all": 0.6 if with_noisy else 1.0, "towers": 1.0, "noisy": 0.0}[args.stage]
    towers = train_towers(towers, minutes * part, batch, device, args.state).eval()
    model = ImageText(WORDS, IMAGE, TEXT, NOISY if with_noisy else None, image_size=IMAGE_SIZE).to(device)
    model.load_state_dict(towers.state_dict(), strict=not with_noisy)
    for p in (*model.image.parameters(), *model.text.parameters(), model.log_scale):
        p.requires_grad_(False)
    if with_noisy:
        attributes.started(model.noisy, args.state)
        model.noisy = train_noisy(model, autoencoder, minutes * (1 - part), batch, args.pool, device, args.state)
    export(model, args.out, accuracies(model, device))


if __name__ == "__main__":
    main()
