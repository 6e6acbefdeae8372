"""ComfyUI-NullText: inversion, editing and guidance of images as nodes."""

import sys

_LOADED = "nulltext (loaded)"  # key in sys.modules: the first copy of this pack in the process

WEB_DIRECTORY = "./web"

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY", "register"]


def register() -> bool:
    """Make the demo model's family, its folder and the pack's routes known to the engine that runs here.

    Idempotent: True if this call did it, False if it was done before. Needs an importable ComfyUI, no server."""
    from .engine import demo_family
    from .nodes import page

    if not demo_family.register():
        return False
    page.register()
    return True


def _inside_engine() -> bool:
    return "comfy.cmd.folder_paths" in sys.modules or "folder_paths" in sys.modules


_first = sys.modules.get(_LOADED)
if _first is None or _first.__name__ == __name__:
    from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

    if _inside_engine():
        register()
    sys.modules[_LOADED] = sys.modules[__name__]
else:  # folder and installed package in one process: one set of nodes, one copy of the page's scripts
    NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS = _first.NODE_CLASS_MAPPINGS, _first.NODE_DISPLAY_NAME_MAPPINGS
    WEB_DIRECTORY = None
