"""Tiny stand-ins of the model families, as nodes of the server that `make families` starts.

A pack of its own in that server's custom_nodes/, so it imports nothing of the pack. Each network is the engine's own
class for the family, so that its checkpoint has the family's real keys; widths and depths are small, weights random.
The file is written into the temporary tree's models/diffusion_models and loaded from there. Every text is 128 wide, so
that the demo checkpoint's text encoder serves all of them.
"""

from .layouts import FAMILIES, TEXT, TOKENS, known, made_config, newer
from .nodes import WEIGHTS, Clip, Control, Latent, Model, Patched
from .streaming import streamed
from .vae import Vae
from .weights import draw, quantise, quieten

__all__ = ["FAMILIES", "TEXT", "TOKENS", "WEIGHTS", "Clip", "Model", "Vae", "draw", "known", "made_config", "newer"]
__all__ += ["quantise", "quieten", "streamed"]
NODE_CLASS_MAPPINGS = {f"Families_{kind.__name__}": kind for kind in (Model, Patched, Control, Latent, Clip, Vae)}
