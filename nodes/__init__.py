"""Every technique is a module of this folder with a tuple NODES; ComfyUI's two mappings are made from them."""

from importlib import import_module
from pkgutil import iter_modules

_MODULES = [import_module(f".{module.name}", __name__) for module in iter_modules(__path__)]
_CLASSES = [cls for module in _MODULES for cls in getattr(module, "NODES", ())]

NODE_CLASS_MAPPINGS = {cls.ID: cls for cls in _CLASSES}
NODE_DISPLAY_NAME_MAPPINGS = {cls.ID: cls.TITLE for cls in _CLASSES}
