"""What every node owes the person who wires it: names, words, tooltips, a help page, a workflow."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import nulltext
import pytest
from nulltext.tools.litegraph import SEEDS

ROOT = Path(__file__).resolve().parents[2]
NODES = nulltext.NODE_CLASS_MAPPINGS
USED = {
    node["class_type"]
    for path in (ROOT / "workflows" / "api").glob("*.api.json")
    for node in json.loads(path.read_text()).values()
}

each = pytest.mark.parametrize("key", sorted(NODES))


def test_there_are_nodes():
    assert NODES, "nodes/__init__.py lists no module"
    assert set(nulltext.NODE_DISPLAY_NAME_MAPPINGS) == set(NODES)
    titles = list(nulltext.NODE_DISPLAY_NAME_MAPPINGS.values())
    assert len(set(titles)) == len(titles), "two nodes share a display name"


def test_no_two_nodes_have_nearly_one_name():
    """A "sampler" in brackets or behind the name does not tell two nodes apart."""
    bare = [re.sub("sampler|[^a-z]", "", node.TITLE.lower()) for node in NODES.values()]
    assert len(set(bare)) == len(bare), sorted(name for name in bare if bare.count(name) > 1)


@pytest.mark.parametrize("word", ["cartoon", "inpaint", "prompt2prompt", "unsampler", "edit photo", "load picture"])
def test_a_node_is_found_by_the_word_that_people_type(word):
    """In its title: the pages of 2024 and of 0.3.64 search nothing else."""
    found = [node for node in NODES.values() if word in node.TITLE.lower()]
    assert found, f"no title holds {word!r}"


@pytest.mark.parametrize("key", ["PromptToPrompt", "PromptToPromptGuider", "CLIPGuidance", "EditPhoto", "WordMask"])
def test_a_box_of_many_inputs_folds_most_widgets_away(key, engine):
    widgets = [i for i in NODES[f"NullText_{key}"].INPUTS if not isinstance(i.kind, str) or "default" in i.options]
    shown = [i.name for i in widgets if not i.options.get("advanced")]
    assert len(shown) <= 8 and len(shown) < len(widgets), shown


@each
def test_names(key):
    node = NODES[key]
    assert key == node.ID
    assert key.startswith("NullText_")
    assert node.TITLE and key != node.TITLE
    assert node.CATEGORY.split("/")[0] == "NullText"
    assert callable(getattr(node, node.FUNCTION))


@each
def test_description_holds_the_search_words(key):
    node = NODES[key]
    assert len(node.DESCRIPTION) >= 40
    missing = [word for word in node.SEARCH_ALIASES if word.lower() not in node.DESCRIPTION.lower()]
    assert node.SEARCH_ALIASES and not missing, f"not in DESCRIPTION, which old engines search: {missing}"


@each
def test_every_input_and_output_has_a_tooltip(key, engine):
    node, least = NODES[key], 10 if key == "NullText_CLIPRank" else 16  # "The batch."
    for part, inputs in node.INPUT_TYPES().items():
        if part == "hidden":
            continue
        for name, spec in inputs.items():
            assert len(spec) > 1 and len(spec[1].get("tooltip", "")) >= least, f"{name} has no tooltip"
    returns = node.RETURN_TYPES
    if returns:
        assert len(node.OUTPUT_TOOLTIPS) == len(returns)
        assert all(len(tip) >= 10 for tip in node.OUTPUT_TOOLTIPS)
        assert len(getattr(node, "RETURN_NAMES", returns)) == len(returns)
    else:
        assert node.OUTPUT_NODE


@each
def test_the_order_of_the_inputs_is_the_order_of_the_widgets(key, engine):
    """Saved workflows hold widgets by place; required ones come first on every front end."""
    node = NODES[key]
    groups = node.INPUT_TYPES()
    assert [i.name for i in node.INPUTS] == [*groups["required"], *groups.get("optional", {})]


@each
def test_run_takes_every_input_and_needs_the_required_ones_alone(key, engine):
    node = NODES[key]
    signature = inspect.signature(node.run)
    inputs = node.INPUTS
    if node.FUNCTION == "shown":  # it takes the VAE that shows the edit, and hands the rest on
        (seen,) = (i for i in inputs if i.name == "vae")
        assert not seen.wanted and "vae" not in signature.parameters
        inputs = [i for i in inputs if i is not seen]
    signature.bind(None, **{i.name: None for i in inputs})
    signature.bind(None, **{i.name: None for i in inputs if i.wanted})
    for i in inputs:
        if not i.wanted and i.name in signature.parameters:
            assert signature.parameters[i.name].default == i.options.get("default"), i.name


@each
def test_a_seed_has_the_pages_button_behind_it_and_nothing_else_has(key, engine):
    """The page of 2024 puts it behind every seed, the modern one unless the schema says no: where they differ, the
    widgets of a saved workflow are shifted by one."""
    given = NODES[key].INPUT_TYPES()
    for name, (_, options) in (given.get("required", {}) | given.get("optional", {})).items():
        assert options.get("control_after_generate", name in SEEDS) == (name in SEEDS), name


@each
def test_what_tells_a_changed_file_takes_a_name_that_comes_by_a_wire(key, engine):
    """The engine asks before it runs, when a wired value isn't known and stands as None."""
    node = NODES[key]
    if hasattr(node, "IS_CHANGED"):
        assert isinstance(node.IS_CHANGED(**{i.name: None for i in node.INPUTS}), str)


@each
def test_what_looks_at_a_prompt_before_its_run_leaves_missing_inputs_to_the_engine(key, engine):
    looks = getattr(NODES[key], "VALIDATE_INPUTS", None)
    assert looks is None or all(p.default is None for p in inspect.signature(looks).parameters.values()), key


@each
def test_a_seed_takes_whatever_seed_is_wired_and_states_the_pages_button(key):
    for seed in (i for i in NODES[key].INPUTS if i.name in (*SEEDS, "training_seed")):
        assert seed.checked(2**64 - 1) == 2**64 - 1 and "control_after_generate" in seed.options


@each
def test_numbers_have_a_default_inside_their_range(key, engine):
    for part, inputs in NODES[key].INPUT_TYPES().items():
        for name, spec in inputs.items() if part != "hidden" else ():
            if spec[0] in ("INT", "FLOAT"):
                options = spec[1]
                assert options["min"] <= options["default"] <= options["max"], name
            elif isinstance(spec[0], list) and "default" in spec[1]:
                assert spec[1]["default"] in spec[0], name


@each
def test_help_page(key, engine):
    page = ROOT / "web" / "docs" / f"{key}.md"
    assert page.is_file(), f"web/docs/{key}.md is missing"
    text = page.read_text(encoding="utf-8")
    assert len(text.split()) >= 40, "a help page says what the node does, when to use it and what each input means"
    unnamed = [
        name
        for part, inputs in NODES[key].INPUT_TYPES().items()
        if part != "hidden"
        for name in inputs
        if name not in text
    ]
    assert not unnamed, f"the help page does not speak of: {', '.join(unnamed)}"


@each
def test_a_workflow_shows_it(key):
    assert key in USED, f"no workflow in workflows/ uses {key}"
