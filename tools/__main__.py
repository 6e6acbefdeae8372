"""python tools NAME [arguments]: run a script of tools/, demo/ or benchmarks/ inside the pack, loaded as `nulltext`.

The pack's folder never stands on sys.path: its `nodes` would hide ComfyUI's own module of that name."""

import contextlib
import importlib
import importlib.util
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def load_pack() -> None:
    """Make `import nulltext` work, whatever the folder of the clone is called."""
    if "nulltext" not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            "nulltext", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
        )
        sys.modules["nulltext"] = pack = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(pack)


def runs(path: Path) -> bool:
    """Whether a file is a script: it has a part of its own for that."""
    return path.stem[0] != "_" and '__name__ == "__main__"' in path.read_text(encoding="utf-8")


def main(arguments: list[str]) -> None:
    known = {path.stem: name for name in ("tools", "demo") for path in (ROOT / name).glob("*.py") if runs(path)}
    benches = {path.parent.name: "benchmarks" for path in (ROOT / "benchmarks").glob("*/__main__.py")}
    if arguments[:1] == ["bench"] and len(arguments) > 1:  # a bench goes before a room of the same name
        arguments, known = arguments[1:], benches
    else:
        known = {**benches, **known, "batch": ""}
    if not arguments or arguments[0] not in known:
        sys.exit(f"usage: python tools NAME [arguments]; NAME is one of: {', '.join(sorted(known))}")
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() not in (ROOT, ROOT / "tools")]
    load_pack()
    sys.argv = arguments
    folder = known[arguments[0]]
    benchmark = folder == "benchmarks"
    with importlib.import_module("nulltext.demo.turn").compute() if benchmark else contextlib.nullcontext():
        runpy.run_module(
            ".".join(filter(None, ("nulltext", folder, arguments[0]))), run_name="__main__", alter_sys=True
        )


if __name__ == "__main__":
    main(sys.argv[1:])
