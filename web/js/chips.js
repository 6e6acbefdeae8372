// Words as chips: click picks one, the slider, the wheel or the arrow keys set its factor, its colour shows it. What is
// saved and queued is the plain text of the node's own widget.
import { ask, setValue, source, upstream, value, watch } from "./adapter.js";
import { make } from "./panel.js";
import { promptAt, textOf } from "./swap.js";
import { chipsOf, colour, parseList, setFactor, splitWords, toggleWord } from "./words.js";

/** @typedef {{widget: string, kind: "factor"|"list", label: string, prompts: string[], always?: string[]}} Field
 * prompts: the inputs that its words come through; always: what may be named besides */
/** @typedef {{fields: Field[], maps?: string}} Spec */

/** @param {string} widget @param {string[]} prompts @returns {Field} */
const factors = (widget, prompts) => ({ widget, kind: "factor", label: widget, prompts });
/** @param {string} widget @param {string[]} prompts @param {string} label @returns {Field} */
const list = (widget, prompts, label = widget) => ({ widget, kind: "list", label, prompts });
const BOTH = ["edited", "edited_2", "edited_3", "source", "inversion"];
const EDIT = { fields: [factors("weights", BOTH.slice(0, 3)), { ...list("blend_words", BOTH, "blend"), always: ["auto"] },
    list("keep_words", BOTH, "keep")] };

/** @type {Record<string, Spec>} */
export const CHIPS = {
    NullText_AttentionReweight: { fields: [factors("weights", ["positive"])] },
    NullText_PromptToPrompt: EDIT,
    NullText_PromptToPromptGuider: EDIT,
    NullText_AttentionRecord: { fields: [list("words", ["positive"])] },
    NullText_WordMask: { fields: [list("words", ["prompt"])] },
    NullText_AttentionMap: { fields: [list("words", [])], maps: "maps" },
};

/** The text of a prompt: of the node's own widget, or behind an input; null if none is there before the run.
 * @param {any} node @param {string} input */
const promptBehind = (node, input) => textOf(promptAt(node, input));

/** The prompts whose words a field may name. @param {any} node @param {Spec} spec @param {Field} field @returns {string[]} */
function promptsOf(node, spec, field) {
    if (spec.maps) {
        const recorder = upstream(source(node, spec.maps), (other) => value(other, "layers") !== undefined, ["ATTENTION_MAPS"]);
        if (!recorder) return [];
        const words = parseList(value(recorder, "words") ?? "");
        return words.length ? [words.join(" ")] : [promptBehind(recorder, "positive") ?? ""];
    }
    return field.prompts.map((input) => promptBehind(node, input)).filter((text) => text !== null);
}

/** @type {Map<string, string[]>} */
const cut = new Map();

/** The words of a prompt by the server's tokenizer; by spaces and signs where it doesn't answer. @param {string} text */
async function wordsOf(text) {
    if (!cut.has(text)) {
        const answer = await ask("words", { text });
        if (!answer) return splitWords(text);
        if (cut.size > 200) cut.clear();
        cut.set(text, answer.words);
    }
    return cut.get(text) ?? [];
}

/** @param {any} node @param {Spec} spec @param {HTMLElement} place */
export function addChips(node, spec, place) {
    let field = spec.fields[0], picked = "", /** @type {string[]} */ words = [], asked = 0;
    const head = make("div", { class: "nulltext-row" });
    const row = make("div", { class: "nulltext-row nulltext-chips", role: "group", "aria-label": "words of the prompt" });
    const slider = make("input", { type: "range", min: -2, max: 5, step: 0.05,
        oninput: () => change(picked, Number(slider.value)) });
    const shown = make("output", { class: "nulltext-muted" });
    const reset = make("button", { type: "button", title: "Back to 1", onclick: () => change(picked, 1) }, "1");
    const setter = make("div", { class: "nulltext-row" }, slider, shown, reset);
    const hint = make("div", { class: "nulltext-muted" });
    place.append(head, row, setter, hint);
    const text = () => String(value(node, field.widget) ?? "");

    function change(/** @type {string} */ word, /** @type {number} */ factor) {
        setValue(node, field.widget, setFactor(text(), word, factor));
        draw();
    }

    function nudge(/** @type {string} */ word, /** @type {number|null} */ factor, /** @type {number} */ by) {
        picked = word;
        change(word, Math.min(5, Math.max(-2, (factor ?? 1) + by)));
    }

    function chip(/** @type {import("./words.js").Chip} */ entry) {
        const isList = field.kind === "list";
        const button = make("button", {
            type: "button", "data-word": entry.word, class: entry.stale ? "stale" : "",
            "aria-pressed": isList ? entry.picked : entry.word === picked,
            title: entry.stale ? `"${entry.word}" is not in the prompt now: click to take it out`
                : isList ? "Click to put it in or take it out" : "Click, then slide; or turn the wheel; or arrow keys",
            onclick: () => {
                if (isList) setValue(node, field.widget, toggleWord(text(), entry.word));
                else if (entry.stale) setValue(node, field.widget, setFactor(text(), entry.word, 1));
                else picked = entry.word;
                draw();
            },
        }, entry.label + (entry.factor !== null ? ` ${entry.factor}` : ""));
        if (!entry.stale) button.style.background = isList ? (entry.picked ? "hsl(150, 45%, 32%)" : "") : colour(entry.factor);
        if (!isList && !entry.stale) {
            button.addEventListener("wheel", (/** @type {WheelEvent} */ event) => {
                event.preventDefault();
                event.stopPropagation();
                nudge(entry.word, entry.factor, event.deltaY < 0 ? 0.25 : -0.25);
            }, { passive: false });
            button.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
                const by = { ArrowUp: 0.25, ArrowDown: -0.25 }[event.key];
                if (by) { event.preventDefault(); nudge(entry.word, entry.factor, by); }
            });
        }
        return button;
    }

    function draw() {
        const focused = row.contains(document.activeElement) && /** @type {any} */ (document.activeElement).dataset.word;
        const chips = chipsOf(words, text(), field.kind);
        head.replaceChildren(...(spec.fields.length < 2 ? [] : [make("span", { class: "nulltext-muted" }, "words for"),
            ...spec.fields.map((other) => make("button", {
                type: "button", "aria-pressed": other === field, "data-field": other.widget,
                onclick: () => { field = other; look(); } }, other.label))]));
        row.replaceChildren(...(chips.length ? chips.map(chip)
            : [make("span", { class: "nulltext-muted" }, "Wire a prompt whose text is written in a node to see its words here.")]));
        const current = chips.find((entry) => entry.word === picked && !entry.stale);
        setter.style.display = field.kind === "factor" && current ? "" : "none";
        hint.textContent = !words.length || (field.kind === "factor" && current) ? ""
            : field.kind === "factor" ? "Click a word, then slide its weight." : "Click a word to put it in or take it out.";
        if (current) {
            slider.value = String(current.factor ?? 1);
            slider.setAttribute("aria-label", `factor of ${current.word}`);
            shown.textContent = `${current.word}: ${current.factor ?? 1}`;
        }
        if (focused) [...row.children].find((child) => /** @type {any} */ (child).dataset.word === focused)?.focus();
    }

    async function look() {
        const mine = ++asked;
        const found = await Promise.all(promptsOf(node, spec, field).map(wordsOf));
        if (mine !== asked) return;  // a newer look overtook this one
        words = found.length > 1 ? [...new Set([...found.flat(), ...(field.always ?? [])])] : found.flat();
        draw();
    }

    draw();
    watch(node, () => JSON.stringify(spec.fields.map((other) => [promptsOf(node, spec, other), value(node, other.widget)])), look);
}
