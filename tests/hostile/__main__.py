"""python tests/hostile: the campaign, with the pack loaded under its name."""

import runpy
import sys
from pathlib import Path

runpy.run_path(str(Path(__file__).resolve().parents[2] / "tools" / "__main__.py"))["load_pack"]()

from nulltext.tests.hostile import campaign  # noqa: E402

sys.exit(campaign.main(sys.argv[1:]))
