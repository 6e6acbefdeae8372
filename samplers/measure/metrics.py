"""How good an edit is: what PIE-Bench measures (Ju et al. 2310.01506), with its details, so that figures are
comparable.

* MSE, PSNR and SSIM outside the edited region are taken on images MULTIPLIED by the region's complement: the zeros
  count, so that a small background inflates PSNR. `masked_mse` divides by the pixels kept instead and is what our
  own tables use.
* SSIM (Wang et al. 2004): Gaussian 11x11 window, sigma 1.5, K 0.01 and 0.03, population variances, mean over
  channels and over the pixels whose window lies inside the image.
* Structure distance (Tumanyan et al. 2202.00512): mean squared difference of the cosine self-similarities of a vision
  transformer's keys (PIE-Bench: DINO ViT-B/8, layer 11, images resized to 224 pixels), times 1e3 in tables.
* Similarity to a prompt: 100 max(0, cos(image, text)) in CLIP's space, as torchmetrics' CLIPScore.

Images are [B, 3, H, W] in [0, 1]; masks [B or 1, 1, H, W], 1 where the edit may change; results are [B], float64.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def _check(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape or a.ndim != 4:
        raise ValueError(
            f"Two images of one shape [B, C, H, W] are compared; got {tuple(a.shape)} and {tuple(b.shape)}."
        )


def outside(image: Tensor, mask: Tensor | None) -> Tensor:
    """PIE-Bench's background: the image times the mask's complement."""
    return image if mask is None else image * (1 - mask.to(image))


def mse(a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared error [B], with a mask PIE-Bench's (zeros count)."""
    _check(a, b)
    return (outside(a, mask).double() - outside(b, mask).double()).square().mean((1, 2, 3))


def masked_mse(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error [B] over the pixels outside the mask only; nan where the mask covers everything."""
    _check(a, b)
    keep = (1 - mask.double()).expand(a.shape[0], a.shape[1], -1, -1)
    return ((a.double() - b.double()).square() * keep).sum((1, 2, 3)) / keep.sum((1, 2, 3))


def to_psnr(error: Tensor) -> Tensor:
    """-10 log10 of a mean squared error, for images in [0, 1]; inf at 0."""
    return -10 * error.double().log10()


def psnr(a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio [B] in dB, with a mask PIE-Bench's (zeros count)."""
    return to_psnr(mse(a, b, mask))


def psnr_outside(a: Tensor, b: Tensor, mask: Tensor | None) -> tuple[Tensor, bool]:
    """(PSNR [B] of images [B, C, H, W] over the pixels outside the mask [n, h, w], n dividing B, True); of all of them
    and False where there is no mask, or nothing outside or inside of it."""
    if mask is not None and bool((mask > 0).any()):
        covered = (F.interpolate(mask[:, None].float().to(a.device), a.shape[-2:]) > 0).float()
        found = to_psnr(masked_mse(a, b, covered.repeat(len(b) // len(covered), 1, 1, 1)))
        if not bool(found.isnan().any()):
            return found, True
    return psnr(a, b), False


def ssim(a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
    """Structural similarity [B] in [-1, 1]. ValueError for images under 11 pixels a side."""
    _check(a, b)
    if min(a.shape[-2:]) < 11:
        raise ValueError(f"SSIM's window is 11x11 pixels; the images are {a.shape[-2]}x{a.shape[-1]}.")
    a, b = outside(a, mask).double(), outside(b, mask).double()
    axis = torch.arange(-5, 6, dtype=torch.float64, device=a.device)
    gauss = torch.exp(-axis.square() / (2 * 1.5**2))
    gauss = gauss / gauss.sum()

    def blur(t):
        channels = t.shape[1]
        t = F.conv2d(t, gauss.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)
        return F.conv2d(t, gauss.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    cov = blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_a * mean_b + c1) * (2 * cov + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return similarity.mean((1, 2, 3))


def self_similarity(features: Tensor) -> Tensor:
    """[B, T, D] -> [B, T, T] cosines between tokens."""
    unit = F.normalize(features.double(), dim=-1)
    return unit @ unit.transpose(1, 2)


def structure_distance(features_a: Tensor, features_b: Tensor) -> Tensor:
    """[B] from two images' token features [B, T, D]; times 1e3 is what tables print."""
    if features_a.shape != features_b.shape:
        raise ValueError(
            f"Features of one shape are compared; got {tuple(features_a.shape)} and {tuple(features_b.shape)}."
        )
    return (self_similarity(features_a) - self_similarity(features_b)).square().mean((1, 2))


def patch_features(images: Tensor, patch: int = 8, size: int = 224) -> Tensor:
    """[B, T, D] without any network: patches of the image at `size` pixels, their mean colour and detail apart.

    For a structure distance where no vision transformer is at hand: not comparable with published figures."""
    small = F.interpolate(images.double(), size=(size, size), mode="bilinear", align_corners=False, antialias=True)
    tokens = F.unfold(small, patch, stride=patch).transpose(1, 2)
    return tokens - tokens.mean(1, keepdim=True)


def clip_similarity(image: Tensor, text: Tensor) -> Tensor:
    """100 max(0, cos) [B] of projected CLIP embeddings [B, D] (text [1 or B, D])."""
    return 100 * F.cosine_similarity(image.double(), text.double(), dim=-1).clamp(min=0)


def region(mask: Tensor, image: Tensor) -> Tensor:
    """A mask [..., h, w] as 0 and 1 [n, 1, H, W] at an image's size. ValueError if it leaves no background."""
    whole = F.interpolate(mask.reshape(-1, 1, *mask.shape[-2:]).float(), size=image.shape[-2:]).round().to(image)
    if bool((whole == 1).flatten(1).all(1).any()):
        raise ValueError("The mask covers the whole picture, so that there is no background to measure: take it out.")
    return whole


def preservation(source: Tensor, edit: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
    """ "psnr", "ssim" and "mse" [B] of an edit, outside the mask if there is one (PIE-Bench's way)."""
    return {"psnr": psnr(source, edit, mask), "ssim": ssim(source, edit, mask), "mse": mse(source, edit, mask)}
