"""Every technique is a module with a tuple NODES; ComfyUI's two mappings are made from them."""

from importlib import import_module

MODULES = (
    "prompt",
    "inversion",
    "null_text",
    "inversion_files",
    "direct_edit",
    "edit_grid",
    "disturbance",
    "repaint",
    "ilvr",
    "sdedit",
    "diffedit",
    "blended",
    "classifier",
    "clip_guidance",
    "semantic",
    "start_noise",
    "trace",
    "rank",
    "cfg_convention",
    "attention",
    "prompt_to_prompt",
    "edit_score",
    "tuning_pictures",
    "train_lora",
    "train_embedding",
    "imagic",
    "tuning_files",
)

_CLASSES = [cls for name in MODULES for cls in import_module(f".{name}", __name__).NODES]

NODE_CLASS_MAPPINGS = {cls.ID: cls for cls in _CLASSES}
NODE_DISPLAY_NAME_MAPPINGS = {cls.ID: cls.TITLE for cls in _CLASSES}
