"""locales/en says what the classes say; every other language names only what there is."""

from __future__ import annotations

import json
import re

import pytest
from nulltext.tools import locales

FILES = {path.parent.name: path for path in sorted(locales.FOLDER.glob("*/nodeDefs.json"))}
OTHERS = pytest.mark.parametrize("language", sorted(set(FILES) - {"en"}))


def test_english_is_current(engine):
    assert FILES["en"].read_text(encoding="utf-8") == locales.text(locales.english()), "run `python tools locales`"


@OTHERS
def test_another_language_names_nodes_and_inputs_that_there_are(language):
    english, other = (json.loads(FILES[name].read_text(encoding="utf-8")) for name in ("en", language))
    assert set(other) == set(english), "every node has a name and a description"
    for key, node in other.items():
        assert node["display_name"] and len(node["description"]) >= 40
        assert set(node.get("inputs", {})) <= set(english[key]["inputs"]), key
        for word in english[key]["description"].partition("Search: ")[2].rstrip(".").split(", "):
            assert word in node["description"], f"{key}: the search word {word!r} is lost"


@OTHERS
def test_another_language_says_every_tooltip_in_its_own_words(language):
    english, other = (json.loads(FILES[name].read_text(encoding="utf-8")) for name in ("en", language))
    for key, node in english.items():
        for part in ("inputs", "outputs"):
            missing = [
                name
                for name, entry in node.get(part, {}).items()
                if other[key].get(part, {}).get(name, {}).get("tooltip", "") in ("", entry["tooltip"])
            ]
            assert not missing, f"{key}, {part}: no {language} tooltip of {', '.join(missing)}"
            assert set(other[key].get(part, {})) == set(node.get(part, {})), key


@pytest.mark.parametrize("language", sorted(FILES))
def test_no_text_is_mistaken_for_a_message_format(language):
    text = FILES[language].read_text(encoding="utf-8")
    texts = re.findall(r'"(?:tooltip|description|display_name)": "((?:[^"\\]|\\.)*)"', text)
    assert len(texts) > 80
    for text in texts:
        assert not re.search(r"[{}@|]", re.sub(r"\{'[{}@|]'\}", "", text)), text


def test_quoting_is_seen():
    assert locales.quoted("4@0.8 {a|b}") == "4{'@'}0.8 {'{'}a{'|'}b{'}'}"
