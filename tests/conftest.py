"""Loads the pack from its folder, whatever that is called, as module `nulltext`."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

if "nulltext" not in sys.modules:
    spec = importlib.util.spec_from_file_location(
        "nulltext", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    pack = importlib.util.module_from_spec(spec)
    sys.modules["nulltext"] = pack
    spec.loader.exec_module(pack)
