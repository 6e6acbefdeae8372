"""The arrows: tools, benchmarks -> nodes -> engine -> samplers; demo -> samplers; tools -> batch. Files fit a head."""

from __future__ import annotations

import ast
import graphlib
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ENGINE = {"comfy", "comfy_extras", "comfy_api", "comfy_execution", "nodes", "node_helpers", "folder_paths"}
ENGINE |= {"server", "execution", "latent_preview"}
#: what a pack has no business with at run time: processes, networks, pickles
UNSAFE = {"subprocess", "socket", "urllib", "http", "requests", "pickle", "shelve", "marshal", "ctypes", "websocket"}
LARGEST = 24 * 1024


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


SAMPLERS, ENGINE_FILES, NODES = sources("samplers"), sources("engine"), sources("nodes")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> list[tuple[int, str, bool]]:
    """(relative level, module, whether at the top of the file) of every import, those inside functions too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = set(map(id, tree.body))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(0, alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module] if node.module else [alias.name for alias in node.names]
            found += [(node.level, module, id(node) in top) for module in modules]
    return found


def absolute(path: Path) -> set[str]:
    return {module.split(".")[0] for level, module, _ in imports(path) if level == 0}


@pytest.mark.parametrize("path", sources("batch"), ids=name)
def test_batch_stands_alone(path):
    """It is installed where tools/ is not, and its code travels to machines of a cluster without the pack."""
    assert not absolute(path) & (ENGINE | {"nulltext", "torch", "pickle"})
    assert all(level <= 1 for level, _, _ in imports(path)), "a relative import leaves batch/"


@pytest.mark.parametrize("path", SAMPLERS, ids=name)
def test_samplers_know_neither_comfyui_nor_nodes(path):
    assert not absolute(path) & (ENGINE | UNSAFE | {"nulltext"})
    depth = len(path.relative_to(ROOT / "samplers").parts)
    assert all(level <= depth for level, _, _ in imports(path)), "a relative import leaves samplers/"


@pytest.mark.parametrize("path", NODES, ids=name)
def test_nodes_know_comfyui_only_through_the_engine(path):
    assert not absolute(path) & (ENGINE | UNSAFE | {"nulltext"})
    for level, module, _ in imports(path):
        assert level < 2 or (level == 2 and module.split(".")[0] in ("engine", "samplers")), f"{'.' * level}{module}"


@pytest.mark.parametrize("path", NODES, ids=name)
def test_nodes_hold_no_mathematics(path):
    """No torch functions beyond moving and joining tensors, no numerical libraries: samplers/ is where those belong."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    allowed = {
        "Tensor",
        "Generator",
        "device",
        "float32",
        "long",
        "bool",
        "random",
        "manual_seed",
        "is_tensor",
        "equal",
    }
    allowed |= {"from_numpy", "as_tensor", "tensor", "ones", "zeros", "zeros_like", "cat", "stack", "where"}
    allowed |= {"no_grad", "inference_mode", "enable_grad"}
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch"
    }
    assert used <= allowed, f"torch.{', torch.'.join(sorted(used - allowed))}"
    assert not [module for _, module, _ in imports(path) if module.startswith(("torch.", "scipy", "einops"))]
    called = {node.func.attr for node in ast.walk(tree) if isinstance(node, ast.Call) and hasattr(node.func, "attr")}
    assert not called & {"square", "sqrt", "interp", "cumsum", "cumprod", "matmul", "einsum"}, (
        "samplers/ has a place for it"
    )
    assert not any(isinstance(node, ast.MatMult) for node in ast.walk(tree))


@pytest.mark.parametrize("path", ENGINE_FILES, ids=name)
def test_the_engine_imports_comfyui_lazily_and_nothing_above_it(path):
    assert not absolute(path) & (UNSAFE | {"nulltext"})
    at_top = {module.split(".")[0] for level, module, top in imports(path) if level == 0 and top}
    assert not at_top & ENGINE, "importing the pack must need no server"
    for level, module, _ in imports(path):
        assert level < 2 or level == 2 and module.split(".")[0] == "samplers", (
            f"above the engine: {'.' * level}{module}"
        )


@pytest.mark.parametrize("path", sources("samplers", "engine", "nodes") + [ROOT / "__init__.py"], ids=name)
def test_the_pack_never_needs_what_stands_on_top(path):
    for _, module, _ in imports(path):
        assert not {"demo", "tools", "batch", "benchmarks", "tests"} & set(module.split("."))


@pytest.mark.parametrize("path", sources("demo"), ids=name)
def test_the_demo_stands_on_samplers_alone(path):
    assert not absolute(path) & (ENGINE | {"nulltext"})
    for level, module, _ in imports(path):
        assert level < 2 or (level == 2 and module.split(".")[0] == "samplers"), f"{'.' * level}{module}"


@pytest.mark.parametrize(
    "path", sources("samplers", "engine", "nodes", "demo", "tools", "batch", "benchmarks", "tests"), ids=name
)
def test_files_fit_a_head(path):
    assert path.stat().st_size <= LARGEST


ROOMS = ("samplers", "engine", "nodes", "demo", "tools", "batch", "benchmarks")


def taken(path: Path) -> set[Path]:
    """The files that a file's relative imports take, those inside functions too: they would hide a circle."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            place = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            for file in (place.with_suffix(".py"), *(place / f"{alias.name}.py" for alias in node.names)):
                found |= {file} if file.is_file() else set()
    return found


def widened(path: Path) -> list[int]:
    """The lines that call `.double()`, which MPS refuses; `.cpu().double()` is none of them."""
    calls = [n.func for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)]
    doubles = [f for f in calls if isinstance(f, ast.Attribute) and f.attr == "double"]
    return [f.lineno for f in doubles if not ast.unparse(f.value).endswith(".cpu()")]


@pytest.mark.parametrize("path", [p for p in SAMPLERS if p.parent.name != "measure"] + ENGINE_FILES + NODES, ids=name)
def test_float64_is_taken_where_the_device_has_it(path):
    """Apple's GPUs have none: `wide` and `as_level` of samplers/core know it. samplers/measure judges on the CPU."""
    assert not widened(path)


def test_no_import_goes_in_a_circle():
    graphlib.TopologicalSorter({path: taken(path) for path in sources(*ROOMS)}).prepare()


def test_no_room_is_more_than_a_quarter_of_the_code():
    lines = {room: sum(len(path.read_text("utf-8").splitlines()) for path in sources(room)) for room in ROOMS}
    assert max(lines.values()) <= sum(lines.values()) / 4, lines


def test_the_checks_above_see_what_they_look_for(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    import comfy.utils\n    from ..nodes import x\n    from . import engine\n")
    assert imports(bad) == [(0, "comfy.utils", False), (2, "nodes", False), (1, "engine", False)]
    assert absolute(bad) == {"comfy"}
    (tmp_path / "wide.py").write_text("a.double()\nb.cpu().double()\nc(d.double())\n")
    assert widened(tmp_path / "wide.py") == [1, 3]
    (tmp_path / "worse.py").write_text("from .bad import f\n")
    for circle in ("from . import worse\n", "def f():\n    from . import worse\n"):
        bad.write_text(circle)
        with pytest.raises(graphlib.CycleError):
            graphlib.TopologicalSorter({path: taken(path) for path in tmp_path.glob("*.py")}).prepare()
    assert len(SAMPLERS) > 10 and len(ENGINE_FILES) > 5 and len(NODES) > 1


@pytest.mark.parametrize("path", sources("samplers"), ids=name)
def test_an_algorithm_has_a_test_file_of_its_name(path):
    inside = path.relative_to(ROOT)
    assert path.stem == "__init__" or (ROOT / "tests" / inside.parent / f"test_{path.stem}.py").is_file()


def test_every_test_runs_in_one_of_the_groups():
    groups = runpy.run_path(str(ROOT / "tests" / "run.py"), run_name="groups")
    commands = [groups["selected"]([], group) for group in groups["GROUPS"]]

    def runs(command: list[str], path: str) -> bool:
        """As pytest takes it: what is ignored is not collected, named or not."""
        inside = lambda folder: path == folder or path.startswith(f"{folder}/")
        ignored = [part.removeprefix("--ignore=") for part in command if part.startswith("--ignore=")]
        return any(map(inside, set(command))) and not any(map(inside, ignored))

    files = [name(path) for path in sources("tests") if path.name.startswith("test_")]
    wrong = {path: count for path in files if (count := sum(runs(c, path) for c in commands)) != 1}
    assert len(files) > 100 and not wrong
