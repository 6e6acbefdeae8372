"""Trains the demo's image tower against attacks: `python tools robust_image_text --minutes 36 --out FILE`.

FARE (Schlarmann, Singh, Croce, Hein 2024, 2402.12336, eq. 3): with the shipped tower f0 frozen, f learns
    min_f  mean over pictures x of  max over |z - x| <= epsilon of  |f(z) - f0(x)|^2,
no captions. So f keeps the space that it shares with the text tower, and a change too small to be seen no longer moves
a picture in it: a network that is tuned to please it (DiffusionCLIP) has to draw what the words say. The inner maximum
is ascent by the sign of the gradient from a random start; here it takes fewer steps than in the paper (10), epsilon is
larger (there 2/255 and 4/255), and the pictures are shifted, blurred and noisy as those of the shipped tower's
training.

FILE is the fp16 model with this image tower, without a noise-aware one. The training is kept in .training/ and goes on
from there when called again.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..samplers.networks.encoder import Encoder
from ..samplers.networks.image_text import ImageText
from ..samplers.record_file import read
from . import scenes
from .image_text import accuracies, disturbed, export
from .latents import generator
from .training import DEVICE, STATE, Trainer, precision
from .weights import MODELS

SHIPPED = MODELS / "nulltext_image_text.safetensors"
EPSILON, ATTACK_STEPS = 0.05, 3


def distance(net: nn.Module, image: Tensor, wanted: Tensor) -> Tensor:
    """FARE's loss for pictures [B, 3, H, W] in [0, 1]: squared distance of the embeddings [B, D] summed over D, mean
    over B."""
    return (net(2 * image - 1).float() - wanted).square().sum(1).mean()


def attacked(
    net: nn.Module, image: Tensor, wanted: Tensor, draws: torch.Generator, epsilon: float, steps: int = ATTACK_STEPS
) -> Tensor:
    """Pictures [B, 3, H, W] in [0, 1], each value moved by at most epsilon to where net is far from `wanted`."""
    change = epsilon * (2 * torch.rand(image.shape, generator=draws, device=image.device) - 1)
    for _ in range(steps):
        change.requires_grad_()
        slope = torch.autograd.grad(distance(net, (image + change).clamp(0, 1), wanted), change)[0]
        change = (change.detach() + 2 * epsilon / steps * slope.sign()).clamp(-epsilon, epsilon)
    return (image + change).clamp(0, 1)


def agreement(net: nn.Module, model: ImageText, epsilon: float, n: int = 128) -> float:
    """Mean cosine of what net says of attacked held-out pictures and what the model says of the pictures themselves."""
    device = model.device
    test = scenes.draw(scenes.sample(n, generator(device, 13), "held_out", two=0))[0]
    pictures = F.adaptive_avg_pool2d(test, model.image_size)
    with torch.no_grad():
        known = model.embed_image(pictures).float()
    worst = attacked(net, pictures, known, generator(device, 14), epsilon, 10) if epsilon else pictures
    with torch.no_grad():
        return float(F.cosine_similarity(net(2 * worst - 1).float(), known, dim=-1).mean())


def hardened(
    model: ImageText, minutes: float, batch: int, device: torch.device, epsilon: float = EPSILON, folder: Path = STATE
) -> Encoder:
    """The model's image tower, trained against attacks of `epsilon`; the model itself stays as it is."""
    net = Encoder(**model.image.config).to(device)
    begun = (model.image.state_dict(), 0)
    trainer = Trainer("robust_image_text", net, minutes, lr=1e-3, ema=0.998, folder=folder, committed=begun)
    draws = generator(device, trainer.samples + 7)

    def step(_):
        image = disturbed(scenes.draw(scenes.sample(batch, draws), model.image_size)[0], draws).clamp(0, 1)
        with precision(device):
            with torch.no_grad():
                wanted = model.embed_image(image).float()
            net.requires_grad_(False)  # attacks ask for the picture's gradient alone
            worst = attacked(net, image, wanted, draws, epsilon)
            net.requires_grad_(True)
            return {"loss": distance(net, worst, wanted)}

    def report():
        plain, worst = (agreement(trainer.average, model, size) for size in (0.0, epsilon))
        return f"agrees with the shipped tower by a cosine of {plain:.3f}, under attacks {worst:.3f}"

    return trainer.run(step, batch, report, save_every=180.0).eval().requires_grad_(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=36.0)
    parser.add_argument("--device", **DEVICE)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--epsilon", type=float, default=EPSILON, help="the largest change of a value in 0..1")
    parser.add_argument("--state", type=Path, default=STATE, help="where the training is kept")
    parser.add_argument("--out", type=Path, required=True, help="the fp16 model to write")
    args = parser.parse_args()
    torch.manual_seed(0)
    model = ImageText.build(*read(SHIPPED, "image-text model")).to(args.device)
    tower = hardened(model, args.minutes, args.batch, args.device, args.epsilon, args.state)
    made = copy.deepcopy(model)
    made.image, made.noisy = tower, None
    notes = {"epsilon": f"{args.epsilon:g}", "agreement_attacked": f"{agreement(tower, model, args.epsilon):.4f}"}
    export(made, args.out, accuracies(made, args.device) | notes)


if __name__ == "__main__":
    main()
