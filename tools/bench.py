"""make bench: the tables that can be made, a line each; `make bench NAME=inversion` makes one."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


def names() -> dict[str, str]:
    """{name: the first sentence of what it says of itself}."""
    found = {}
    for path in sorted(FOLDER.glob("*/__main__.py")):
        said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        found[path.parent.name] = said.split("\n\n")[0].replace("\n", " ").split(" `make bench")[0].rstrip(".:")
    return found


def main() -> int:
    for name, said in names().items():
        print(f"make bench NAME={name:<18} {said}")
    print("\nARGS=--quick shows in a minute or so that one runs; families and pie have ARGS=--help in its place.")
    print("What they measured: docs/benchmarks.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
