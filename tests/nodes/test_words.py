"""What may be written into a text widget, and what is refused."""

import pytest
from nulltext.nodes import words


def test_lines_and_items():
    assert words.lines(" a red circle \n\n blue, square\n") == ["a red circle", "blue, square"]
    assert words.items(" red, small car;x\ny ,") == ["red", "small car", "x", "y"]
    assert words.choices(" a red circle | blue||") == ["a red circle", "blue"]


def test_factors_and_windows_of_words():
    assert words.factors("red: 2, small car: -1.5\nx:0") == {"red": 2.0, "small car": -1.5, "x": 0.0}
    assert words.windows("cat: 0.4, red: 0.2-0.8") == {"cat": (0.0, 0.4), "red": (0.2, 0.8)}
    assert words.factors(" \n") == {}
    for bad in ("red", "red:", ": 2"):
        with pytest.raises(ValueError, match="should read"):
            words.factors(bad)
    for bad in ("red: much", "red: nan", "red: inf"):
        with pytest.raises(ValueError, match="is not a number from"):
            words.factors(bad)
    for bad in ("red: 0.8-0.2", "red: 2", "red: x", "red: -1", "red: 0.2-x", "red: nan"):
        with pytest.raises(ValueError, match="within 0 and 1"):
            words.windows(bad)


def test_targets_have_a_weight_where_one_is_written():
    assert words.targets("a red circle\na cat : -0.5\n\n: 2\nratio 3:4") == (
        ["a red circle", "a cat", "ratio 3"],
        [1, -0.5, 4],
    )
    assert words.targets("at: noon") == (["at: noon"], [1])


def test_settings_of_a_strip():
    assert words.settings("2@0.8, 4@0.5") == [(2, 0.8), (4, 0.5)] and words.settings("") == []
    for bad in ("4", "4@", "@0.5", "0.5@0.5", "4@2", "4@x", "4@nan"):
        with pytest.raises(ValueError, match="no setting of a strip"):
            words.settings(bad)


def test_numbers_are_read_with_their_sign_and_only_finite_ones():
    assert words.numbers("-1, 0, 1.5", "strengths") == [-1, 0, 1.5] and words.numbers("", "strengths") == []
    for wrong in ("half", "1, nan", "inf", "1 2"):
        with pytest.raises(ValueError, match="no list of numbers for strengths"):
            words.numbers(wrong, "strengths")
    with pytest.raises(ValueError, match="There are 101 strengths"):
        words.numbers("1," * 101, "strengths")


@pytest.mark.parametrize("wrong", ["much", "0.5, 2", "-1", "nan"])
def test_fractions_are_read_strictly(wrong):
    assert words.fractions("0, .5;1", "strengths") == [0, 0.5, 1] and words.fractions("", "strengths") == []
    with pytest.raises(ValueError, match="The strengths are numbers from 0 to 1"):
        words.fractions(wrong, "strengths")


def test_feature_maps_are_whole_numbers():
    assert words.feature_maps("1, 0,1") == (0, 1)
    for bad in ("", "a", "-1", "0.5"):
        with pytest.raises(ValueError, match="Layers are numbers"):
            words.feature_maps(bad)


def test_an_edits_texts_are_read_and_its_numbers_left():
    given = {"edit": "auto", "cross_steps": 0.8, "word_windows": "cat: 0.4", "weights": "red: 2", "blend_words": "a, b"}
    read = {"word_windows": {"cat": (0.0, 0.4)}, "weights": {"red": 2.0}, "blend_words": ["a", "b"]}
    assert words.edit_plan({**given, "keep_words": ""}) == {**given, **read, "keep_words": []}


def test_lists_of_runs_and_factors_have_an_end():
    from nulltext.nodes import words

    for make in (lambda n: words.fractions("0.5," * n, "noise levels"), lambda n: words.settings("4@0.5," * n)):
        assert len(make(100)) == 100
        with pytest.raises(ValueError, match="There are 101 .*: write 100 at the most"):
            make(101)
    assert words.factors("red: -1000") == {"red": -1000.0}
    with pytest.raises(ValueError, match="is not a number from -1000 to 1000"):
        words.factors("red: 1e308")
