// Word fields as text and as chips. Pure functions: no page, no server. samplers/attention/alignment.py reads the same text.

/** @typedef {{word: string, value: number|null, raw: string}} Entry  value null: not a number */
/** @typedef {{label: string, word: string, factor: number|null, picked: boolean, stale: boolean}} Chip */

/** What stands between the entries of a word field or a list of numbers: nodes/words.py splits there too. */
export const BETWEEN = /[,;\n]/;

const EDGE = /^[\p{P}\p{S}\s]+|[\p{P}\p{S}\s]+$/gu;

/** A word as it is compared: lower case, no punctuation at its edges. @param {string} text */
export const normal = (text) => text.replace(EDGE, "").toLowerCase();

/** The words of a prompt without a tokenizer's help; emphasis such as (red:1.2) is no word.
 * @param {string} text @returns {string[]} */
export function splitWords(text) {
    return text.replace(/:\s*-?\d*\.?\d+\s*\)/g, ")").split(/[^\p{L}\p{N}]+/u).map(normal).filter(Boolean);
}

/** "red: 2, small car: -1.5" @param {string} text @returns {Entry[]} */
export function parseFactors(text) {
    return text.split(BETWEEN).filter((part) => part.trim()).map((part) => {
        const colon = part.lastIndexOf(":");
        const raw = part.trim(), value = colon < 0 ? "" : part.slice(colon + 1).trim();
        const number = value === "" ? NaN : Number(value);
        return { word: (colon < 0 ? part : part.slice(0, colon)).trim(), raw,
            value: Number.isFinite(number) ? number : null };
    });
}

/** The text with one word's factor set; 1 takes the word out; what can't be read stays as it is.
 * @param {string} text @param {string} word @param {number} factor */
export function setFactor(text, word, factor) {
    const entries = parseFactors(text), rounded = Math.round(factor * 100) / 100;
    const same = (/** @type {Entry} */ entry) => phrase(entry.word) === phrase(word);
    const kept = entries.filter((entry) => !same(entry)).map((entry) => entry.raw);
    const at = entries.findIndex(same);
    if (rounded !== 1) kept.splice(at < 0 ? kept.length : Math.min(at, kept.length), 0, `${word}: ${rounded}`);
    return kept.join(", ");
}

/** "snow, small car" @param {string} text */
export const parseList = (text) => text.split(BETWEEN).map((part) => part.trim()).filter(Boolean);

/** The list with a word put in or taken out. @param {string} text @param {string} word */
export function toggleWord(text, word) {
    const words = parseList(text), kept = words.filter((entry) => phrase(entry) !== phrase(word));
    return (kept.length < words.length ? kept : [...words, word]).join(", ");
}

/** Several words in a row, each as it is compared. @param {string} text */
export const phrase = (text) => text.split(/\s+/).map(normal).filter(Boolean).join(" ");

/** Whether the words stand in the prompt, next to each other. @param {string[]} words @param {string} text */
export function contains(words, text) {
    const wanted = phrase(text).split(" ").filter(Boolean);
    return wanted.length > 0 && words.some((_, i) => wanted.every((word, k) => words[i + k] === word));
}

/** One chip per word of the prompt in its order (a repeated word shares its factor), then what the text names besides:
 * phrases of the prompt, and stale entries whose words the prompt has lost.
 * @param {string[]} words @param {string} text @param {"factor"|"list"} kind @returns {Chip[]} */
export function chipsOf(words, text, kind) {
    const entries = kind === "factor" ? parseFactors(text)
        : parseList(text).map((raw) => ({ word: raw, value: null, raw }));
    const named = new Map(entries.map((entry) => [phrase(entry.word), entry]));
    const chips = words.map((word) => {
        const entry = named.get(word);
        return { label: word, word, factor: entry?.value ?? null, picked: !!entry, stale: false };
    });
    const shown = new Set(words);
    for (const [key, entry] of named) {
        if (shown.has(key)) continue;
        chips.push({ label: entry.word || entry.raw, word: entry.word, factor: entry.value, picked: true,
            stale: !contains(words, key) || (kind === "factor" && entry.value === null) });
    }
    return chips;
}

/** The chip's colour: warm above 1, cool below, grey at 1. @param {number|null} factor */
export function colour(factor) {
    if (factor === null || factor === 1) return "hsl(220, 8%, 36%)";
    const strength = Math.min(1, Math.abs(factor - 1) / 3);
    return factor > 1 ? `hsl(24, ${Math.round(45 + 45 * strength)}%, 38%)`
        : `hsl(212, ${Math.round(45 + 45 * strength)}%, 42%)`;
}

const WORD = /[\p{L}\p{N}]+(?:['\u2019-][\p{L}\p{N}]+)*/gu;

/** The words of a text with their places. @param {string} text @returns {{text: string, from: number, to: number}[]} */
export const placed = (text) => [...text.matchAll(WORD)].map((hit) => ({ text: hit[0], from: hit.index ?? 0, to: (hit.index ?? 0) + hit[0].length }));

/** For each word of the source, what stands for it in the edited prompt: the longest common row of words is paired, what
 * lies between two pairs belongs word by word, the rest to the last word before it.
 * @param {string} source @param {string} edited @returns {{word: string, now: string, from: number, to: number}[]} from
 * and to: its place in the edited text */
export function pairsOf(source, edited) {
    const a = placed(source), b = placed(edited), n = a.length, m = b.length;
    const [before, after] = [a, b].map((words) => words.map((word) => normal(word.text)));
    const length = Array.from({ length: n + 1 }, () => new Array(m + 1).fill(0));
    for (let i = n - 1; i >= 0; i--) for (let j = m - 1; j >= 0; j--) {
        length[i][j] = before[i] === after[j] ? length[i + 1][j + 1] + 1 : Math.max(length[i + 1][j], length[i][j + 1]);
    }
    /** @type {{word: string, now: string, from: number, to: number}[]} */
    const found = [];
    const entry = (/** @type {number} */ i, /** @type {number} */ from, /** @type {number} */ to) =>
        found.push({ word: a[i].text, now: edited.slice(from, to), from, to });
    let i = 0, j = 0;
    while (i < n) {
        let p = i, q = j;  // the next words that both have
        while (p < n && q < m && before[p] !== after[q]) length[p + 1][q] >= length[p][q + 1] ? p++ : q++;
        if (p >= n || q >= m) { p = n; q = m; }
        for (let k = i; k < p; k++) {
            const first = Math.min(j + k - i, q), last = k === p - 1 ? q : Math.min(first + 1, q);
            const at = first < q ? b[first].from : first > 0 ? b[first - 1].to : 0;
            entry(k, at, first < last ? b[last - 1].to : at);
        }
        if (p < n) { entry(p, b[q].from, b[q].to); q++; p++; }
        i = p; j = q;
    }
    return found;
}

/** The edited prompt with another text for one word of the source; an empty edited prompt begins as the source.
 * @param {string} source @param {string} edited @param {number} index @param {string} to */
export function swapWord(source, edited, index, to) {
    const text = edited.trim() ? edited : source, at = pairsOf(source, text)[index];
    if (!at) return text;
    const between = at.from === at.to && to.trim() ? " " : "";  // nothing stood there
    const swapped = text.slice(0, at.from) + (at.from ? between : "") + to.trim() + (at.from ? "" : between) + text.slice(at.to);
    return to.trim() ? swapped : swapped.replace(/ {2,}/g, " ").replace(/ ([,.;])/g, "$1").trim();
}
