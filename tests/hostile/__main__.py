"""python tests/hostile: the campaign, with the pack loaded under its name."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("nulltext", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
pack = importlib.util.module_from_spec(spec)
sys.modules["nulltext"] = pack
spec.loader.exec_module(pack)

from nulltext.tests.hostile import campaign  # noqa: E402

sys.exit(campaign.main(sys.argv[1:]))
