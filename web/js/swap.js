// Words of the source prompt as buttons: click one and type what it shall become; the edited prompt follows.
import { setValue, source, upstream, value, watch } from "./adapter.js";
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

/** The node and widget that hold a prompt: of this node, or of the one behind an input. @param {any} node
 * @param {string} name @returns {{node: any, widget: string}|null} */
export function promptAt(node, name) {
    if (typeof value(node, name) === "string") return { node, widget: name };
    const hasText = (/** @type {any} */ other) => typeof value(other, "text") === "string";
    const found = upstream(source(node, name), hasText, ["CONDITIONING", "INVERSION"]);
    if (!found) return null;
    const wired = source(found, "text");  // the text widget turned into an input
    const given = wired?.widgets?.find((/** @type {any} */ widget) => typeof widget.value === "string");
    return given ? { node: wired, widget: given.name } : { node: found, widget: "text" };
}

const textAt = (/** @type {{node: any, widget: string}|null} */ at) => at ? String(value(at.node, at.widget)) : "";

/** @param {any} node @param {Spec} spec @param {HTMLElement} place */
export function addSwap(node, spec, place) {
    let open = -1;
    const row = make("div", { class: "nulltext-row nulltext-chips", role: "group", "aria-label": "words of the source prompt" });
    const hint = make("div", { class: "nulltext-muted" }, "Click a word and type what it shall become.");
    place.append(row, hint);
    const ends = () => ({ from: spec.from.map((name) => promptAt(node, name)).find(Boolean) ?? null, to: promptAt(node, spec.to) });

    function commit(/** @type {number} */ index, /** @type {string} */ to) {
        const { from, to: target } = ends();
        open = -1;
        if (from && target) {
            setValue(target.node, target.widget, swapWord(textAt(from), textAt(target), index, to));
            if (spec.blend && !String(value(node, spec.blend) ?? "").trim()) setValue(node, spec.blend, "auto");
        }
        draw();
    }

    function draw() {
        const { from, to } = ends();
        const pairs = from && to ? pairsOf(textAt(from), textAt(to).trim() ? textAt(to) : textAt(from)) : [];
        row.replaceChildren(...pairs.map((pair, i) => {
            if (i === open) {
                const box = make("input", { type: "text", "aria-label": `what ${pair.word} shall become`, size: 12,
                    onkeydown: (/** @type {KeyboardEvent} */ event) => {
                        event.stopPropagation();
                        if (event.key === "Enter") commit(i, box.value);
                        if (event.key === "Escape") { open = -1; draw(); }
                    },
                    onblur: () => { if (open === i) commit(i, box.value); } });
                box.value = pair.now;
                requestAnimationFrame(() => { box.focus(); box.select(); });
                return box;
            }
            const changed = normal(pair.word) !== normal(pair.now);
            return make("button", { type: "button", "data-swap": String(i), "aria-pressed": changed,
                title: `Click and type what "${pair.word}" shall become`, onclick: () => { open = i; draw(); },
            }, changed ? `${pair.word} \u2192 ${pair.now || "(nothing)"}` : pair.word);
        }));
        const missing = !from ? "Wire or write the source prompt to see its words here." : to ? "" : "Wire the edited prompt too.";
        hint.textContent = missing || (pairs.length ? "Click a word and type what it shall become." : "Write what the picture shows into the source prompt.");
    }

    draw();
    watch(node, () => { const { from, to } = ends(); return JSON.stringify([textAt(from), textAt(to), !from, !to]); }, () => { if (open < 0) draw(); });
}
