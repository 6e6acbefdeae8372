"""How large a node is on the page: as it opens, and with what a run adds to it."""

from __future__ import annotations

from typing import Any

Info = dict[str, Any]  # one node class of /object_info

#: shown by their title alone: they have nothing to set
FOLDED = ("VAEDecode", "VAEEncode", "MaskToImage")
PILL = 160  # width of a folded node
NOTE_WIDTH = 340
#: heights of what a node shows under its widgets. PANEL: the pack's own, before a run (chips, schedules, a line of
#: cost); the rest comes with a run, and the layout leaves the room for it under the node
COST, CHIPS, SCHEDULE, REPORT, PICTURE, PREVIEW = 26, 110, 170, 130, 360, 240
PANEL = {
    "NullText_AttentionMap": CHIPS,
    "NullText_AttentionRecord": CHIPS,
    "NullText_AttentionReweight": CHIPS,
    "NullText_BlendedDiffusion": COST,
    "NullText_DiffEditMask": COST,
    "NullText_DirectEdit": COST,
    "NullText_Disturbance": SCHEDULE,
    "NullText_DisturbanceSampler": SCHEDULE,
    "NullText_DisturbanceSchedule": SCHEDULE,
    "NullText_ILVRSampler": COST,
    "NullText_EditPhoto": CHIPS,
    "NullText_InvertImage": COST,
    "NullText_Inverter": COST,
    "NullText_Optimise": COST,
    "NullText_LoadPicture": 280,
    "NullText_OptimiseStartNoise": COST,
    "NullText_PromptToPrompt": CHIPS + COST + 26,
    "NullText_PromptToPromptGuider": CHIPS + 26,
    "NullText_RePaint": SCHEDULE,
    "NullText_RePaintSampler": SCHEDULE,
    "NullText_SDEdit": COST,
    "NullText_WordMask": CHIPS,
}
PICTURES = ("NullText_AttentionMap", "NullText_InvertImage", "NullText_Inverter", "NullText_Optimise")
PICTURES += ("NullText_BlendedDiffusion", "NullText_DiffEdit", "NullText_DirectEdit", "NullText_DisturbanceSampler")
PICTURES += ("NullText_EditPhoto", "NullText_ILVRSampler", "NullText_PromptToPrompt", "NullText_RePaintSampler")
PICTURES += ("NullText_MasaCtrl", "NullText_RFInversion")
PICTURES += ("NullText_SDEdit", "NullText_Sampler", "NullText_WordMask")
#: reports of another height than most: what trains shows its loss and samples, a map its pictures by strength
REPORTS = {"NullText_Prompt": 70, "NullText_LoadPicture": 40, "NullText_HSpaceMap": 620} | dict.fromkeys(
    ("NullText_ImagicOptimise", "NullText_TrainControlNet", "NullText_TrainEmbedding")
    + ("NullText_TrainLora", "NullText_HSpaceTrain", "NullText_DiffusionCLIPTune"),
    380,
)


def kinds(info: Info) -> set[str]:
    """The types that go into a node by wire or widget."""
    parts = (info["input"].get("required") or {}), (info["input"].get("optional") or {})
    return {spec[0] for part in parts for spec in part.values() if isinstance(spec[0], str)}


def size(info: Info, places: list[tuple[str, str | None]], inputs: int, outputs: int) -> list[int]:
    """A node's [width, height]: slots, widgets, the picture that a picture node shows, the pack's own panels."""
    parts = {**(info["input"].get("required") or {}), **(info["input"].get("optional") or {})}
    height, width = 30 + 21 * max(inputs, outputs), 300 if REPORTS.get(info["name"], 0) > REPORT else 270
    for place, name in places:
        spec = parts.get(name, ("",))
        tall = spec[0] == "STRING" and len(spec) > 1 and spec[1].get("multiline")
        height += 90 if tall else 26
        width = max(width, 320 if tall else 0, 120 + 8 * len(place))
    if info["name"] in ("LoadImage", "SaveImage", "PreviewImage"):
        height += 230
    return [width, height + PANEL.get(info["name"], 0)]


def note_size(text: str) -> list[int]:
    """[width, height] of a note that shows all of its text."""
    return [NOTE_WIDTH, 60 + 17 * sum(1 + len(line) // 47 for line in text.splitlines())]


def room(info: Info) -> int:
    """What a run adds to the node: its report and pictures, and the live preview of whatever makes a latent."""
    ours, name = info["name"].startswith("NullText_"), info["name"]
    preview = name == "SamplerCustomAdvanced" or "LATENT" in info["output"] and "MODEL" in kinds(info)
    return REPORTS.get(name, REPORT) * ours + max(PICTURE * (name in PICTURES), PREVIEW * preview)
