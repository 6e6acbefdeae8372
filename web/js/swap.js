// Words of the source prompt as buttons: click one and type what it shall become; the edited prompt follows.
import { plainText, setValue, source, upstream, value, watch, wired } from "./adapter.js";
import { make } from "./panel.js";
import { normal, pairsOf, swapWord } from "./words.js";

/** @typedef {{from: string[], to: string, blend?: string}} Spec  from, to: widgets of the node, or inputs that a prompt is
 * wired to; blend: the widget of the blend words */

/** @type {Record<string, Spec>} */
export const SWAPS = {
    NullText_EditPhoto: { from: ["source_prompt"], to: "edited_prompt" },
    NullText_PromptToPrompt: { from: ["source", "inversion"], to: "edited", blend: "blend_words" },
    NullText_PromptToPromptGuider: { from: ["source", "inversion"], to: "edited", blend: "blend_words" },
    NullText_DirectEdit: { from: ["source"], to: "target" },
    NullText_DiffEditMask: { from: ["source"], to: "target" },
    NullText_Sampler: { from: ["inversion"], to: "positive" },
};

/** Stands for a prompt that no widget here holds: a run makes it, or it is written outside the subgraph. */
const ELSEWHERE = { node: null, widget: "" };

/** The node and widget that hold a prompt: of this node, or of the one behind an input; null where there is none.
 * @param {any} node @param {string} name @returns {{node: any, widget: string}|null} */
export function promptAt(node, name) {
    const own = typeof value(node, name) === "string", widget = own ? name : "text";
    const holder = own ? node
        : upstream(source(node, name), (other) => typeof value(other, "text") === "string", ["CONDITIONING", "INVERSION"]);
    if (!holder || !wired(holder, widget)) return holder && { node: holder, widget };
    const behind = source(holder, widget), given = plainText(behind);
    return given === null ? ELSEWHERE : { node: behind, widget: given };
}

/** The text of a prompt; null where there is none, or none before the run.
 * @param {{node: any, widget: string}|null} at @returns {string|null} */
export const textOf = (at) => at && at !== ELSEWHERE ? String(value(at.node, at.widget)) : null;

/** @param {any} node @param {Spec} spec @param {HTMLElement} place */
export function addSwap(node, spec, place) {
    let open = -1, /** @type {any} */ box = null;
    const row = make("div", { class: "nulltext-row nulltext-chips", role: "group", "aria-label": "words of the source prompt" });
    const hint = make("div", { class: "nulltext-muted" }, "Click a word and type what it shall become.");
    place.append(row, hint);
    const ends = () => ({ from: spec.from.map((name) => promptAt(node, name)).find(Boolean) ?? null, to: promptAt(node, spec.to) });

    function words() {
        const [given, edited] = Object.values(ends()).map(textOf);
        return given === null || edited === null ? [] : pairsOf(given, edited.trim() ? edited : given);
    }

    /** Close the open box and let the prompt follow what stands in it, if that is another text than before. */
    function commit() {
        const index = open, word = words()[index], { from, to } = ends();
        open = -1;
        if (from && to && word && word.now !== box.value.trim()) {
            setValue(to.node, to.widget, swapWord(textOf(from) ?? "", textOf(to) ?? "", index, box.value));
            if (spec.blend && !String(value(node, spec.blend) ?? "").trim()) setValue(node, spec.blend, "auto");
        }
    }

    function draw() {
        const { from, to } = ends(), pairs = words();
        row.replaceChildren(...pairs.map((pair, i) => {
            if (i === open) {
                box = make("input", { type: "text", "aria-label": `what ${pair.word} shall become`, size: 12,
                    onkeydown: (/** @type {KeyboardEvent} */ event) => {
                        event.stopPropagation();
                        if (event.key === "Enter") commit();
                        if (event.key === "Escape") open = -1;
                        if (open < 0) draw();
                    },
                    onblur: () => { if (open === i) { commit(); draw(); } } });
                box.value = pair.now;
                requestAnimationFrame(() => { box.focus(); box.select(); });
                return box;
            }
            const changed = normal(pair.word) !== normal(pair.now);
            return make("button", { type: "button", "data-swap": String(i), "aria-pressed": changed,
                title: `Click and type what "${pair.word}" shall become`,
                onmousedown: (/** @type {MouseEvent} */ event) => event.preventDefault(),  // an open box keeps the focus until the click
                onclick: () => { commit(); open = i; draw(); },
            }, changed ? `${pair.word} \u2192 ${pair.now || "(nothing)"}` : pair.word);
        }));
        hint.textContent = !from ? "Wire or write the source prompt to see its words here." : !to ? "Wire the edited prompt too."
            : from === ELSEWHERE || to === ELSEWHERE ? "This prompt is written or made elsewhere: change it there."
                : pairs.length ? "Click a word and type what it shall become." : "Write what the picture shows into the source prompt.";
    }

    draw();
    watch(node, () => JSON.stringify(Object.values(ends()).map((at) => [textOf(at), !at])), () => { if (open < 0) draw(); });
}
