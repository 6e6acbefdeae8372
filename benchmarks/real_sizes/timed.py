"""The cells of `make families`, and what of their time is the network's.

A cell's time is that of its samplers' and of the pack's nodes, on this thread's clock, so that a busy neighbour counts
less; what the VAE and the text encoder take is left out. Beside it stands what the same calls of the network cost by
themselves: a call without gradients the time of a plain call of as many rows, measured in the same run; a call that
records gradients, a backward pass, and a call of any other network (a ControlNet, a classifier, image-text towers),
what it took.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from unittest import mock

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from ..families import stand_ins
from ..families.inside import Inside
from ..families.stand_ins import TEXT, TOKENS

FAMILIES = {"SD1.5": {}, "SDXL": {"num_head_channels": 64}}  #: and what of their heads is narrower in the stand-ins
#: their work inside the network grows with the picture, so that theirs is twice as large a side
ATTENTION = ("AttentionRecord", "AttentionReweight", "PromptToPrompt", "MasaCtrl", "PromptToPromptGuider", "WordMask")
SAMPLERS = {"KSampler", "SamplerCustom", "SamplerCustomAdvanced"}


@dataclass
class Spent:
    """Seconds of this thread, and the rows of the network's calls without gradients."""

    whole: float = 0.0
    beside: float = 0.0  #: in the VAE and the text encoder
    recorded: float = 0.0  #: in calls of the network that record gradients, and in backward passes
    asked: float = 0.0  #: in its calls without gradients, as they ran here
    others: dict[str, float] = field(default_factory=dict)  #: in calls of other networks, by their class
    rows: list[int] = field(default_factory=list)
    recorded_calls: int = 0

    @property
    def of_networks(self) -> float:
        """In calls as they ran, but for those of the network without gradients."""
        return self.recorded + sum(self.others.values())

    def ratio(self, plain: Plain) -> float:
        """The cell's time over that of its networks' calls."""
        return (self.whole - self.beside) / (self.of_networks + sum(map(plain.seconds, self.rows)))

    def outside(self) -> float:
        """The cell's time over that of its networks' calls as they ran: what a box adds inside of them is not seen, and
        a machine that slows down in mid-cell doesn't count."""
        return (self.whole - self.beside) / (self.of_networks + self.asked)


class Plain:
    """What a call of a network costs without gradients, by its rows: on the line through the medians of those timed."""

    def __init__(self, network: nn.Module, size: int):
        self.network, self.size = network, size
        self.times: dict[int, list[float]] = {1: [], 2: [], 4: []}

    def measure(self) -> None:
        """One call of each; called before and after every cell, so that a machine's drift is followed."""
        for rows, times in self.times.items():
            x, context = torch.randn(rows, 4, self.size, self.size), torch.randn(rows, TOKENS, TEXT)
            more = {"context": context}
            if self.network.num_classes == "sequential":
                more["y"] = torch.randn(rows, self.network.label_emb[0][0].in_features)
            with torch.inference_mode():
                begun = time.thread_time()
                self.network(x, torch.full((rows,), 500.0), **more)
                times.append(time.thread_time() - begun)

    def seconds(self, rows: int) -> float:
        known = sorted(self.times)
        low = max([n for n in known[:-1] if n <= rows], default=known[0])
        high = known[known.index(low) + 1]
        of = {n: statistics.median(self.times[n][-8:]) for n in (low, high)}
        return of[low] + (rows - low) / (high - low) * (of[high] - of[low])


class Drawn(stand_ins.Model):
    """MODEL of random weights without a file: a large one is in memory once."""

    def model(self, family: str, dtype: torch.dtype, throughout: bool):
        made = stand_ins.made_config(family, dtype, throughout).get_model({}, "", device="cpu")
        stand_ins.quieten(stand_ins.draw(made.diffusion_model).state_dict())
        return made


class Wide(Inside):
    """A family in this process at a real checkpoint's widths."""

    own = {"Families_Model": Drawn}


class Timed(Wide):
    """Its cells are timed: `spent` of the last one."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.spent, self.outside, self.plains = Spent(), {}, {}

    def load(self) -> None:
        """Load what every cell takes."""
        graph = self.graph()
        graph.shown(graph.add("VAEDecode", samples=graph.original, vae=graph.vae))
        graph.drawn(steps=1)
        self.left(graph)

    def plain(self) -> Plain:
        """What a plain call costs at the size as it is now."""
        return self.plains.setdefault(self.size, Plain(self.outside["network"], self.size))

    def called(self, node, kind, given, outputs):
        ours = kind in SAMPLERS or kind.startswith("NullText_")
        begun = time.thread_time()
        made = super().called(node, kind, given, outputs)
        if ours:
            self.spent.whole += time.thread_time() - begun
        if kind == "Families_Model":
            self.outside["network"] = made[0].model.diffusion_model
        elif kind == "Families_Vae":
            self.outside["vae"] = made[0].first_stage_model
        elif kind == "Families_Clip":
            self.outside["clip"] = made[0].cond_stage_model
        return made

    @contextmanager
    def watched(self) -> Iterator[Spent]:
        """What runs in the block is timed."""
        self.spent = spent = Spent()
        network = self.outside["network"]
        left_out = {part for name in ("vae", "clip") for part in self.outside[name].modules()}
        open_: list[tuple] = []  # what has begun: (module or backward pass, time)

        def begin(module, given):
            if not open_:  # an inner module's time is the outer one's
                open_.append((module, time.thread_time()))

        def end(module, given, made):
            if not open_ or open_[-1][0] is not module:
                return
            took = time.thread_time() - open_.pop()[1]
            if module is not network and module in left_out:
                spent.beside += took
            elif module is not network:
                kind = type(module).__name__
                spent.others[kind] = spent.others.get(kind, 0.0) + took
            elif made.requires_grad:
                spent.recorded += took
                spent.recorded_calls += 1
            else:
                spent.asked += took
                spent.rows.append(len(given[0]))

        def backward(function):
            def timed(*args, **more):
                begun = time.thread_time()
                open_.append((function, begun))  # a network that is asked again meanwhile counts as the pass
                try:
                    return function(*args, **more)
                finally:
                    open_.pop()
                    spent.recorded += time.thread_time() - begun

            return timed

        with ExitStack() as stack:
            for handle in (register_module_forward_pre_hook(begin), register_module_forward_hook(end)):
                stack.callback(handle.remove)
            stack.enter_context(mock.patch.object(torch.autograd, "grad", backward(torch.autograd.grad)))
            stack.enter_context(mock.patch.object(torch.Tensor, "backward", backward(torch.Tensor.backward)))
            yield spent


def lab(size: int, width: int, made: type[Wide] = Timed, family: str = "SD1.5", **options) -> Wide:
    """A family of `width` channels in its first level; size: latent cells a side. options: of `Wide`."""
    kind, config, more = stand_ins.FAMILIES[family]
    more = more | (FAMILIES[family] if width >= 64 else {})
    stand_ins.FAMILIES[family] = (kind, config | {"model_channels": width}, more)
    return made(family, None, size, **options)


def size_of(name: str, size: int) -> int:
    """The side on which a box is measured, where plain ones are on `size`."""
    return size * (2 if name.removeprefix("NullText_") in ATTENTION else 1)
