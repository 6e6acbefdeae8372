import assert from "node:assert/strict";
import { test } from "node:test";
import { chipsOf, colour, contains, normal, pairsOf, parseFactors, setFactor, splitWords, swapWord, toggleWord } from "../../web/js/words.js";

test("a factor is set, changed, and taken out at 1", () => {
    assert.equal(setFactor("", "snow", 0.5), "snow: 0.5");
    assert.equal(setFactor("snow: 0.5", "cat", 2), "snow: 0.5, cat: 2");
    assert.equal(setFactor("snow: 0.5, cat: 2", "snow", -1.25), "snow: -1.25, cat: 2");
    assert.equal(setFactor("snow: 0.5, cat: 2", "snow", 1), "cat: 2");
    assert.equal(setFactor("snow: 0.5\ncat: 2", "Cat,", 3), "snow: 0.5, Cat,: 3");
    assert.equal(setFactor("", "red", 0.1 + 0.2), "red: 0.3");
});

test("what can't be read is left alone", () => {
    assert.equal(setFactor("snow, cat: two", "dog", 2), "snow, cat: two, dog: 2");
    assert.deepEqual(parseFactors("snow").map((e) => e.value), [null]);
    assert.deepEqual(parseFactors("ratio: 3:2")[0], { word: "ratio: 3", value: 2, raw: "ratio: 3:2" });
    assert.equal(parseFactors("snow:")[0].value, null);
});

test("chips: one per word, repeats share a factor, phrases and stale entries follow", () => {
    const words = ["a", "red", "car", "and", "a", "red", "cat"];
    const chips = chipsOf(words, "red: 2, red car: 0.5, dog: 3", "factor");
    assert.deepEqual(chips.map((c) => c.label), [...words, "red car", "dog"]);
    assert.deepEqual(chips.filter((c) => c.label === "red").map((c) => c.factor), [2, 2]);
    assert.deepEqual(chips.slice(7).map((c) => [c.stale, c.factor]), [[false, 0.5], [true, 3]]);
    assert.equal(chipsOf([], "", "factor").length, 0);
});

test("a prompt that changed makes its words stale, not lost", () => {
    const before = chipsOf(["blue", "cat"], "cat: 2", "factor"), after = chipsOf(["blue", "dog"], "cat: 2", "factor");
    assert.equal(before.find((c) => c.word === "cat").stale, false);
    assert.deepEqual(after.map((c) => [c.word, c.stale]), [["blue", false], ["dog", false], ["cat", true]]);
});

test("lists toggle", () => {
    assert.equal(toggleWord("", "snow"), "snow");
    assert.equal(toggleWord("snow, small car", "cat"), "snow, small car, cat");
    assert.equal(toggleWord("Snow, small car", "snow"), "small car");
    assert.deepEqual(chipsOf(["snow", "cat"], "snow", "list").map((c) => c.picked), [true, false]);
});

test("semicolons and new lines stand between entries as commas do, as in nodes/words.py", () => {
    assert.deepEqual(parseFactors("red: 2; small car: 3\ncat: 4").map((e) => [e.word, e.value]), [["red", 2], ["small car", 3], ["cat", 4]]);
    assert.equal(toggleWord("circle\nred; blue", "red"), "circle, blue");
});

test("words without a tokenizer: emphasis, signs, accents", () => {
    assert.deepEqual(splitWords("A (red:1.3) car, ((snow)) d'été"), ["a", "red", "car", "snow", "d", "été"]);
    assert.equal(normal(" “Cat,” "), "cat");
    assert.ok(contains(["small", "red", "car"], "Red car"));
    assert.ok(!contains(["small", "red", "car"], "small car"));
    assert.ok(!contains(["small"], ""));
});

test("colour tells more from less", () => {
    assert.equal(colour(null), colour(1));
    assert.notEqual(colour(2), colour(0.5));
    assert.notEqual(colour(2), colour(4));
});

const said = (source, edited) => pairsOf(source, edited).map((pair) => `${pair.word}>${pair.now}`).join(" ");

test("each word of the source knows what stands for it in the edited prompt", () => {
    assert.equal(said("a red circle, blue sky", "a green circle, blue sky"), "a>a red>green circle>circle blue>blue sky>sky");
    assert.equal(said("a red cat", "a dark blue cat"), "a>a red>dark blue cat>cat");
    assert.equal(said("a red cat", "a cat"), "a>a red> cat>cat");
    assert.equal(said("a cat and a cat", "a cat and a dog"), "a>a cat>cat and>and a>a cat>dog");
});

test("a word becomes another in the edited prompt; what was changed before stays", () => {
    assert.equal(swapWord("a red cat, sitting", "", 1, "green"), "a green cat, sitting");
    assert.equal(swapWord("a red cat, sitting", "a green cat, sitting", 2, "dog"), "a green dog, sitting");
    assert.equal(swapWord("a red cat", "a green cat", 1, "dark blue"), "a dark blue cat");
    assert.equal(swapWord("a red cat", "a dark blue cat", 1, "red"), "a red cat");
    assert.equal(swapWord("a red cat", "a cat", 1, "red"), "a red cat");
    assert.equal(swapWord("red cat", "cat", 0, "blue"), "blue cat");
    assert.equal(swapWord("a big cat, here", "a big cat, here", 2, ""), "a big, here");
    assert.equal(swapWord("a cat", "a cat", 7, "x"), "a cat");
});
