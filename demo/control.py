"""A ControlNet for the demo model: the object's mask, white on black, says where and in which shape the object stands.

The small form (Control-LoRA) of samplers/tuning/controlnet, trained on scenes as `train.py` trains the UNet, which
stays as it is; `python tools train controlnet`, then `pack_controlnet`.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..samplers.core import Denoise, guided
from ..samplers.tuning import controlnet
from . import captions, nets, scenes
from .latents import USES, Latents, generator, v_prediction, weighed_loss
from .model import TextToImage, drawn, empty_rows, schedule
from .training import STATE, Trainer, grid, precision
from .weights import CHECKPOINT, MODELS, read_part

FILE = MODELS / "controlnet" / "nulltext_mask.safetensors"
RANK = 16
#: shares of captions that say nothing, that leave the places out, and the sizes
EMPTY, NO_PLACE = 0.5, 0.5


class ControlNet(nn.Module):
    """The encoder side of a UNet with a hint encoder and a 1 x 1 convolution for each skip and the middle, under the
    names of the published code (2302.05543): noisy latent [B, 4, h, w], hint [B, 3, 8h, 8w] in 0..1, timestep [B],
    context [B, 77, 128] -> what to add to each skip and, last, to the middle block's output."""

    def __init__(self, unet: nets.UNet):
        super().__init__()
        self.channels = unet.channels
        self.time_embed, self.input_blocks, self.middle_block = (
            copy.deepcopy(part) for part in (unet.time_embed, unet.input_blocks, unet.middle_block)
        )
        widths = [16, 16, 32, 32, 96, 96, 256]
        layers = []
        for i, (n_in, n_out) in enumerate(zip([3, *widths], [*widths, unet.channels], strict=True)):
            layers += [nets.conv(n_in, n_out, stride=2 if i in (2, 4, 6) else 1), nn.SiLU()]
        self.input_hint_block = nn.Sequential(*layers[:-1])
        self.zero_convs = nn.ModuleList(
            nn.ModuleList([nn.Conv2d(width, width, 1)]) for width in [block_width(b) for b in unet.input_blocks]
        )
        middle = block_width(unet.middle_block)
        self.middle_block_out = nn.ModuleList([nn.Conv2d(middle, middle, 1)])

    def forward(self, x: Tensor, hint: Tensor, t: Tensor, context: Tensor, seen: Tensor | None = None) -> list[Tensor]:
        """seen: what the hint encoder made of the hint, where the caller has it already."""
        emb = self.time_embed(nets.timestep_embedding(t, self.channels))
        features = nets.encoded(self, x, emb, context, self.input_hint_block(hint) if seen is None else seen)
        return [conv[0](f) for conv, f in zip([*self.zero_convs, self.middle_block_out], features, strict=True)]


def block_width(block: nn.ModuleList) -> int:
    """Channels of a block's output."""
    last = [m for m in block.modules() if isinstance(m, nn.Conv2d)][-1]
    return last.out_channels


class Control(nn.Module):
    """The small form's tensors as parameters, and the locked UNet's weights beside them (neither saved nor trained)."""

    def __init__(self, unet: nn.Module, form: dict[str, Tensor] | None = None):
        super().__init__()
        self._other = [ControlNet(unet), dict(unet.state_dict())]
        if form is None:
            shapes = {name: value.shape for name, value in self._other[0].state_dict().items()}
            form = controlnet.initial(shapes, self._other[1], rank=RANK)
        self.form = nn.ParameterDict({name.replace(".", "|"): nn.Parameter(value) for name, value in form.items()})

    def tensors(self) -> dict[str, Tensor]:
        """The small form by its names."""
        return {name.replace("|", "."): value for name, value in self.form.items()}

    def forward(self, x: Tensor, hint: Tensor, t: Tensor, context: Tensor, seen: Tensor | None = None) -> list[Tensor]:
        skeleton, network = self._other
        weights = controlnet.merged(self.tensors(), network)
        return torch.func.functional_call(skeleton, weights, (x, hint, t, context, seen), strict=False)

    def encoded(self, hint: Tensor) -> Tensor:
        """What the hint encoder makes of a hint: the same at every step."""
        (prefix,) = controlnet.HINT
        own = {k.removeprefix(prefix): v for k, v in self.tensors().items() if k.startswith(prefix)}
        return torch.func.functional_call(self._other[0].input_hint_block, own, (hint,))


def hint_of(mask: Tensor) -> Tensor:
    """Objects' masks [B, 2, H, W] -> the hint [B, 3, H, W]: white where any object is."""
    white = mask.amax(1, keepdim=True).expand(-1, 3, -1, -1).float()
    return white.contiguous(memory_format=torch.channels_last)


def sparing(batch: scenes.Scenes, draws: torch.Generator | None = None, share: float = 1.0) -> tuple[Tensor, Tensor]:
    """`captions.phrases` without places in `share` of the rows and without sizes in `share` of them."""
    rows, form = captions.phrases(batch, draws)
    for kind in ("place", "size"):
        gone = torch.rand(len(rows), 1, generator=draws, device=rows.device) < share
        rows = torch.where(gone & captions.columns(kind, form), -1, rows)
    return rows, form


def control_rows(batch: scenes.Scenes, draws: torch.Generator) -> Tensor:
    """Token rows [B, 77] for training: half of them empty, the others often without place and size."""
    rows = captions.token_rows(*sparing(batch, draws, NO_PLACE))[0]
    empty = torch.rand(len(rows), 1, generator=draws, device=rows.device) < EMPTY
    return torch.where(empty, empty_rows(len(rows), rows.device), rows)


def controlled(unet: nn.Module, control: Control, context: Tensor, hint: Tensor, strength: float = 1.0) -> Denoise:
    """v-prediction as a denoiser with the control in it; context [B, 77, 128], hint [B, 3, 8h, 8w]."""
    table, seen = nets.sigmas(), control.encoded(hint)

    def denoise(x, sigma):
        s = torch.as_tensor(sigma, device=x.device, dtype=x.dtype)
        t = (table.log() - s.cpu().clamp(min=1e-9).log()).abs().argmin().to(x.device).expand(len(x))
        a = (1 + s * s).rsqrt()
        added = None if strength == 0 else [strength * c for c in control(a * x, hint, t, context, seen)]
        return a * a * x - s * a * unet(a * x, t, context, control=added)

    return denoise


@torch.no_grad()
def generate(
    net: TextToImage,
    autoencoder: nn.Module,
    control: Control,
    rows: Tensor,
    hint: Tensor,
    steps: int = 20,
    cfg: float = 5.0,
    seed: int = 0,
    strength: float = 1.0,
) -> Tensor:
    """Images [B, 3, 128, 128] in 0..1 for token rows [B, 77] and hints, by Euler steps; the hint is in both branches,
    as core's Apply ControlNet (Advanced) does it."""
    contexts = [net.text(r) for r in (rows, empty_rows(len(rows), rows.device))]
    cond, uncond = (controlled(net.unet, control, c, hint, strength) for c in contexts)
    sigmas = schedule(steps, nets.sigmas().to(rows.device))
    return drawn(autoencoder, guided(cond, uncond, cfg), sigmas, len(rows), seed)


def load(unet: nn.Module, path: Path = FILE) -> Control:
    """The trained small form on a UNet, fp32, frozen. FileNotFoundError without the file."""
    form = {name: value.float() for name, value in load_file(path).items() if name != controlnet.MARKER}
    return Control(unet, form).eval().requires_grad_(False)


def pack(trained: Path, path: Path = FILE) -> None:
    """Write what was trained as the file that core's ControlNetLoader reads, fp16."""
    with safe_open(trained, "pt") as f:
        samples = f.metadata()["samples"]
    form = {name.removeprefix("form.").replace("|", "."): value for name, value in load_file(trained).items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(controlnet.file_of(form), path, {"format": "pt", "samples_seen": samples, "hint": "object mask"})
    print(f"{path.name}: {samples} samples seen, {path.stat().st_size / 1e6:.2f} MB")


def locked() -> TextToImage:
    """The committed text encoder and UNet, frozen."""
    net = TextToImage()
    net.text.load_state_dict(read_part(CHECKPOINT, "text"))
    net.unet.load_state_dict(read_part(CHECKPOINT, "unet"))
    return net.eval().requires_grad_(False)


# -- the judge: colours alone, no network


def found(images: Tensor, colour: Tensor, background: Tensor) -> Tensor:
    """[B, H, W] bool: pixels nearer to the object's colour than to the background's, in whatever light; images
    [B, 3, H, W] in 0..1, colour and background [B] indices of `scenes`."""
    table = lambda names, index: torch.tensor([scenes.RGB[n] for n in names])[index.cpu()]  # noqa: E731
    body, ground = table(scenes.COLOURS, colour), table(scenes.BACKGROUNDS, background)
    light = torch.tensor([0.7, 0.85, 1.0, 1.2])[:, None]
    bodies = torch.cat([body[:, None] * light, (body + 0.25 * (1 - 0.6 * body))[:, None]], 1)
    grounds = torch.cat([(g[:, None] * light) for g in (ground, ground + 0.3 * (1 - ground), 0.74 * ground)], 1)

    def away(samples):
        gaps = (images[:, None] - samples.to(images)[..., None, None]).square().sum(2)
        return gaps.amin(1)

    return away(bodies.clamp(0, 1)) < away(grounds.clamp(0, 1))


def object_iou(images: Tensor, masks: Tensor, colour: Tensor, background: Tensor) -> Tensor:
    """[B] overlap over union of `found` with the first object's mask [B, 2, H, W]."""
    there, wanted = found(images, colour, background), masks[:, 0] > 0.5
    return (there & wanted).flatten(1).sum(1) / (there | wanted).flatten(1).sum(1).clamp(min=1)


def hinted_loss(
    net: TextToImage, control: nn.Module, x0: Tensor, mask: Tensor, batch: scenes.Scenes, draws: torch.Generator
) -> Tensor:
    """The loss of one batch of latents x0 [B, 4, 16, 16] whose objects' masks [B, 2, 128, 128] are the hints; the net
    is locked."""
    seen, hint = v_prediction(x0, draws), hint_of(mask)
    with precision(x0.device):
        with torch.no_grad():
            context = net.text(control_rows(batch, draws))
        v = net.unet(seen.x, seen.timestep, context, control=control(seen.x, hint, seen.timestep, context))
    return weighed_loss(v, seen.target, F.avg_pool2d(mask, 8))


def train(
    device: torch.device, autoencoder: nn.Module, minutes: float, batch: int, pool: int, lr: float, folder=STATE
) -> nn.Module:
    """The object's mask as a hint: the small form on the locked, committed UNet."""
    torch.manual_seed(0)
    net = locked().to(device)
    trainer = Trainer("controlnet", Control(net.unet).to(device), minutes, lr=lr, ema=0.995, folder=folder, warmup=100)
    draws = generator(device, trainer.samples + 8)
    latents = Latents(pool, autoencoder, draws, whole=True)

    def step(i):
        if i % 8 == 7:
            latents.refresh(min(batch * 8 // USES, pool))
        return {"loss": hinted_loss(net, trainer.net, *latents.take(batch), draws)}

    test = scenes.sample(16, generator(device, 13), "held_out", two=0.0)
    masks = scenes.draw(test)[1]
    rows, hint = captions.token_rows(*sparing(test))[0], hint_of(masks)

    @torch.no_grad()
    def report():
        made = generate(net, autoencoder, trainer.average, rows, hint, 12)
        grid(torch.cat([hint[:8], made[:8], hint[8:], made[8:]]), trainer.path.with_name("controlnet_samples.png"))
        share = object_iou(made, masks, test.colour[:, 0], test.background).mean()
        return f"mask IoU {share:.3f} on 16 held-out hints, captions without place and size"

    return trainer.run(step, batch, report, save_every=60 if device.type == "cuda" else 300)
