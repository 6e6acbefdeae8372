"""Other languages name only what there is; what they leave out is shown in English and fails nothing."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest
from nulltext.nodes import NODE_CLASS_MAPPINGS
from nulltext.tools import help_pages, locales

each = pytest.mark.parametrize("file", locales.FILES, ids=lambda path: path.parent.name)


@pytest.fixture(scope="module")
def classes(engine):
    return locales.classes()


def test_english_stands_in_the_classes_alone():
    assert [path.parent.name for path in locales.FILES] == ["de"]


@each
def test_a_language_names_nodes_inputs_and_outputs_that_there_are(file, classes):
    said = json.loads(file.read_text(encoding="utf-8"))
    assert not set(said) - set(classes)
    for key, node in said.items():
        assert set(node.get("inputs", {})) <= set(help_pages.inputs(classes[key])), key
        assert set(node.get("outputs", {})) <= {str(i) for i in range(len(help_pages.outputs(classes[key])))}, key


@each
def test_a_text_is_no_copy_of_the_english_one(file, classes):
    for key, node in json.loads(file.read_text(encoding="utf-8")).items():
        english = {name: options["tooltip"] for name, (_, options, _) in help_pages.inputs(classes[key]).items()}
        copied = [n for n, entry in node.get("inputs", {}).items() if entry["tooltip"] == locales.quoted(english[n])]
        assert not copied, f"{key}: {', '.join(copied)}"


@each
def test_no_text_is_mistaken_for_a_message_format(file):
    texts = re.findall(r'"(?:tooltip|description|display_name)": "((?:[^"\\]|\\.)*)"', file.read_text(encoding="utf-8"))
    assert len(texts) > 80
    for text in texts:
        assert not re.search(r"[{}@|]", re.sub(r"\{'[{}@|]'\}", "", text)), text


def test_quoting_is_seen():
    assert locales.quoted("4@0.8 {a|b}") == "4{'@'}0.8 {'{'}a{'|'}b{'}'}"


class Node:
    RETURN_TYPES, OUTPUT_TOOLTIPS, SEARCH_ALIASES = ("MODEL",), ("The model.",), ["first", "a|b"]
    INPUT_TYPES = staticmethod(lambda: {"required": {"a": ("INT", {"tooltip": "An a."}), "b": ("INT", {})}})


@pytest.fixture
def german(tmp_path, monkeypatch):
    file = tmp_path / "de" / "nodeDefs.json"
    file.parent.mkdir()
    definition = {"description": "Ein Node. Suche: old.", "inputs": {"a": {"tooltip": "Ein a."}}}
    file.write_text(json.dumps({"X": definition}), encoding="utf-8")
    monkeypatch.setattr(locales, "FILES", [file])
    return file


def test_what_a_language_leaves_out_is_listed(german):
    found = locales.missing(german, {"X": Node, "Y": Node})
    assert found == ["X.display_name", "X.inputs.b", "X.outputs.0", "Y"]


def test_search_words_are_put_at_the_end_of_a_description(german):
    text = json.loads(locales.texts({"X": Node})[german])["X"]
    assert text == {"description": "Ein Node. Suche: first, a{'|'}b.", "inputs": {"a": {"tooltip": "Ein a."}}}
    assert "old" in json.loads(locales.texts({"Z": SimpleNamespace()})[german])["X"]["description"]


def spoken(value, path=()):
    """Every text of the German file but titles and search words, by its place."""
    if isinstance(value, dict):
        return [each for key, inner in value.items() for each in spoken(inner, (*path, key))]
    return [] if path[-1] == "display_name" else [(".".join(path), value.partition(" Suche: ")[0])]


def test_german_calls_a_node_by_its_german_title():
    defs = json.loads((locales.FILES[0]).read_text(encoding="utf-8"))
    for name, box in NODE_CLASS_MAPPINGS.items():
        english, german = (re.sub(r" \(.*\)$", "", title) for title in (box.TITLE, defs[name]["display_name"]))
        for place, text in spoken(defs) if english != german else ():
            assert not re.search(rf"(?<!ComfyUIs )\b{re.escape(english)}\b", text), f"{place}: {english} is {german}"


def test_german_has_one_word_for_a_thing():
    defs = json.loads((locales.FILES[0]).read_text(encoding="utf-8"))
    words = (
        r"\b(Stapel|Aufsatz|Führung|CLIP-Rangliste|Aufmerksamkeitskarte|(das|ein|dem|des) LoRA|(das|die|eine) VAE)\b"
    )
    assert [place for place, text in spoken(defs) if re.search(words, text, re.IGNORECASE)] == []
    assert "0 behält" in defs["NullText_DisturbanceSchedule"]["inputs"]["steps_above"]["tooltip"]
