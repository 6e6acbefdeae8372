"""The token aligner alone: columns are places in 77-token (here 12-token) chunks."""

import time

import pytest
import torch
from nulltext.samplers.attention import alignment
from nulltext.samplers.attention.alignment import TokenMap, align, columns_of, refine_map, replace_map, token_map

LENGTH, BOS, EOS = 12, 900, 901
VOCABULARY = {}


def prompt(text, pieces=None, pad=EOS):
    """A prompt as the Prompt node notes it; `pieces` maps a word to how many tokens it has; "," is a token but no
    word."""
    pieces, ids, words = pieces or {}, [], []
    for word in text.replace(",", " ,").split():
        tokens = [VOCABULARY.setdefault((word, k), len(VOCABULARY)) for k in range(pieces.get(word, 1))]
        columns = [
            (len(ids) + k) // (LENGTH - 2) * LENGTH + (len(ids) + k) % (LENGTH - 2) + 1 for k in range(len(tokens))
        ]
        ids += tokens
        if word != ",":
            words.append({"text": word, "tokens": columns})
    chunks = max(1, -(-len(ids) // (LENGTH - 2)))
    flat = []
    for c in range(chunks):
        part = ids[c * (LENGTH - 2) : (c + 1) * (LENGTH - 2)]
        flat += [BOS] + part + [EOS] + [pad] * (LENGTH - 2 - len(part))
    return {"text": text, "words": words, "ids": flat, "chunks": chunks}


def test_equal_prompts_map_to_themselves():
    for text in ("a red cat", "a cat, a dog", " ".join(["word"] * 25)):
        p = prompt(text, {"cat": 2})
        assert replace_map(p, p).identity
        assert refine_map(p, p).identity


def test_replace_one_token_by_one():
    table = replace_map(prompt("a cat"), prompt("a tiger"))
    assert table.identity  # column 2 looks at column 2: the word changed, its place did not


def test_replace_one_token_by_two_shifts_the_rest():
    table = replace_map(prompt("a cat here"), prompt("a tiger here", {"tiger": 2}))
    assert table.columns[:6] == (0, 1, -1, -1, 3, 4)
    assert table.spread == (((2, 3), (2,)),)
    source = torch.rand(5, LENGTH, dtype=torch.float64).softmax(-1)
    edited = table.apply(source, torch.zeros(5, LENGTH, dtype=torch.float64))
    assert torch.equal(edited[:, 2], source[:, 2] / 2)
    assert torch.equal(edited[:, 2] + edited[:, 3], source[:, 2])
    assert torch.equal(edited[:, 4], source[:, 3])


def test_replace_two_tokens_by_one_sums():
    table = replace_map(prompt("a tiger here", {"tiger": 2}), prompt("a cat here"))
    source = torch.rand(5, LENGTH).softmax(-1)
    edited = table.apply(source, torch.zeros(5, LENGTH))
    torch.testing.assert_close(edited[:, 2], source[:, 2] + source[:, 3])
    assert torch.equal(edited[:, 3], source[:, 4])


def test_rows_keep_their_sum_where_token_counts_agree():
    source = torch.rand(7, LENGTH, dtype=torch.float64).softmax(-1)
    edited = replace_map(prompt("red cat"), prompt("blue dog")).apply(
        source, torch.rand(7, LENGTH, dtype=torch.float64)
    )
    torch.testing.assert_close(edited.sum(-1), torch.ones(7, dtype=torch.float64))


def test_needleman_wunsch():
    assert align([1, 2, 3], [1, 2, 3]) == [0, 1, 2]
    assert align([1, 2, 3], [1, 9, 2, 3]) == [0, -1, 1, 2]
    assert align([1, 2, 3], [1, 3]) == [0, 2]
    assert align([1, 2, 3], [1, 8, 3]) == [0, -1, 2]
    assert align([], [4, 5]) == [-1, -1]
    assert align([1, 2, 1], [1]) in ([0], [2])


def test_refine_keeps_what_both_say_and_frees_the_new():
    table = refine_map(prompt("a cat on grass"), prompt("a striped cat on grass"))
    assert table.columns[:6] == (0, 1, -1, 2, 3, 4)
    source, target = torch.rand(3, LENGTH), torch.rand(3, LENGTH)
    edited = table.apply(source, target)
    assert torch.equal(edited[:, 2], target[:, 2])
    assert torch.equal(edited[:, 3], source[:, 2])


@pytest.mark.parametrize("pad", [EOS, 0])
def test_padding_looks_at_padding_and_end_at_end(pad):
    source, target = prompt("a cat on grass", pad=pad), prompt("a cat", pad=pad)
    columns = refine_map(source, target).columns
    assert columns[3] == 5  # end token to end token
    assert min(columns[4:]) >= 5  # never a word's column


def test_repeated_words_are_hit_at_all_places_and_punctuation_is_no_part():
    p = prompt("a cat, a Cat and a dog", {"cat": 2})
    assert columns_of(p, "cat") == [2, 3, 6]
    assert columns_of(p, " CAT, ") == [2, 3, 6]
    assert columns_of(p, "a dog") == [8, 9]
    assert alignment.words_in(p) == ["a", "cat", "and", "dog"]


def test_an_unknown_word_is_refused_with_the_words_there_are():
    with pytest.raises(ValueError, match=r'"fox" is not in .* its words are: a, cat\.'):
        columns_of(prompt("a cat"), "fox")
    with pytest.raises(ValueError, match="not in the prompt"):
        columns_of(prompt("a red cat"), "a cat")  # not next to each other
    with pytest.raises(ValueError, match="not in the prompt"):
        columns_of(prompt("a cat"), " , ")


def test_prompts_beyond_one_chunk():
    long = prompt(" ".join(f"w{i}" for i in range(15)))
    other = prompt(" ".join(f"w{i}" for i in range(14)) + " end")
    assert long["chunks"] == 2
    assert columns_of(long, "w12") == [LENGTH + 3]
    assert replace_map(long, other).identity
    short = prompt("w0 w1")
    columns = refine_map(short, long).columns
    assert len(columns) == 2 * LENGTH
    assert columns[:4] == (0, 1, 2, -1)
    assert columns[LENGTH] == 0  # the second chunk's begin token looks at the only one there is
    assert refine_map(long, short).columns[:3] == (0, 1, 2)


def test_content_lies_between_the_ends_of_every_chunk():
    words, others = (prompt(" ".join([word] * 15)) for word in ("word", "other"))
    free = [i for i, column in enumerate(refine_map(words, others).columns) if column == -1]
    assert free == [*range(1, 11), *range(LENGTH + 1, LENGTH + 6)]


def test_the_edit_is_chosen_by_the_word_count():
    assert token_map(prompt("a cat"), prompt("a dog"))[1] == "replace"
    assert token_map(prompt("a cat"), prompt("a big dog"))[1] == "refine (2 and 3 words)"
    assert token_map(prompt("a cat"), prompt("a dog"), "refine")[1] == "refine"
    said = token_map(prompt("a cat"), prompt("a big dog"), "replace")[1]
    assert said == "refine, as replace needs prompts of as many words (2 and 3 words)"
    with pytest.raises(ValueError, match="as many words; got 2 and 3"):
        replace_map(prompt("a cat"), prompt("a big dog"))


@pytest.mark.parametrize(
    ("before", "after", "differ", "with_what_they_describe"),
    [
        ("a red cat", "a green cat", ("red", "green"), ("red cat", "green cat")),
        ("a cat", "a cat in snow", ("", "in snow"), ("", "in snow")),
        ("a big cat", "a cat", ("big", ""), ("big cat", "")),
        ("a cat and a cat", "a cat and a dog", ("cat", "dog"), ("cat", "dog")),
        (
            "a cat, striped blue wall",
            "a cat, plain blue wall",
            ("striped", "plain"),
            ("striped blue wall", "plain blue wall"),
        ),
        ("a red cat, a wall", "a red dog, a wall", ("cat", "dog"), ("cat", "dog")),
        ("a cat sitting here", "a dog sitting here", ("cat", "dog"), ("cat", "dog")),
        ("a Cat.", "a cat", ("", ""), ("", "")),
    ],
)
def test_the_words_that_differ_and_what_they_describe(before, after, differ, with_what_they_describe):
    prompts = prompt(before), prompt(after)
    found = alignment.differing_words(*prompts)
    said = lambda words: " ".join(word["text"] for word in words)  # noqa: E731
    assert tuple(map(said, found)) == differ
    assert tuple(said(alignment.spoken_of(p, words)) for p, words in zip(prompts, found)) == with_what_they_describe


def test_an_endless_prompt_takes_no_time_and_two_are_refused():
    """Twenty thousand words: quadratic work would take half a minute, deaf to an interrupt."""
    endless, short = prompt("word " * 20_000), prompt("a red car")
    began = time.process_time()
    before, _ = alignment.differing_words(endless, short)
    assert len(alignment.spoken_of(endless, before)) == 20_000
    assert len(alignment.refine_map(short, endless).columns) == len(endless["ids"])
    assert time.process_time() - began < 4
    with pytest.raises(ValueError, match="too long to be compared"):
        alignment.differing_words(endless, endless)


def test_factors_of_words_by_column():
    both = [prompt("a red red car"), prompt("a cat")]
    assert alignment.factor_columns(both, {"red": 2.0, "car": 0.5}) == [{2: 2.0, 3: 2.0, 4: 0.5}, {}]
    with pytest.raises(ValueError, match='"fox" is in none of the prompts; their words are: a, red, car, cat'):
        alignment.in_some_prompt(both, ["red", "fox"])


def test_token_map_does_not_touch_its_input():
    source, target = torch.rand(2, 4), torch.rand(2, 4)
    kept = source.clone(), target.clone()
    TokenMap((0, -1, -1, 3), (((1, 2), (1,)),)).apply(source, target)
    assert torch.equal(source, kept[0])
    assert torch.equal(target, kept[1])
