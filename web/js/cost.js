// What a run will cost, from the widgets alone: one line per node class. Pure functions.
// The nodes' reports tell the true number afterwards; these lines are upper bounds that anyone can follow.

import { parseList } from "./words.js";

/** @typedef {Record<string, any>} Widgets  values by name; `wired` holds the names of the wired inputs */

const call = (/** @type {number} */ n) => `${n} network call${n === 1 ? "" : "s"}`;
const parts = (/** @type {any} */ text) => parseList(String(text ?? "")).length;

/** @type {Record<string, (w: Widgets) => string|null>} */
const FORMULAS = {
    NullText_InvertImage: (w) => {
        if (w.wired.has("sigmas")) return null;
        const pair = w.pivot === "exact pair", steps = Math.round(w.steps * (w.depth ?? 1));
        const extra = pair ? w.iterations : w.pivot === "fixed point" ? steps * w.iterations : 0;
        const rows = w.cfg === 1 ? "" : ", two network rows each";
        return `at most ${call(steps + extra)} there, ${steps - (pair && steps > 1 ? 1 : 0)} back${rows}`;
    },
    NullText_Optimise: (w) => {
        const more = String(w.embeddings ?? "").startsWith("one for all") ? 3 : 2;
        return `per step at most ${w.inner_steps + more} forwards and ${w.inner_steps} backwards`;
    },
    NullText_Inverter: (w) => {
        if (w.wired.has("sigmas")) return null;
        const there = w.steps + (w.pivot === "fixed point" ? w.steps * w.iterations : 0);
        if (String(w.correction ?? "").endsWith("null-text")) {
            const more = w.correction === "null-text" ? 2 : 3;
            return `at most ${there} + ${w.steps * (w.inner_steps + more)} forwards and ${w.steps * w.inner_steps} backwards`;
        }
        return `at most ${call(there + (w.correction === "direct overwrite" ? 0 : w.steps))}`;
    },
    NullText_PromptToPrompt: (w) => {
        const edits = 1 + ["edited_2", "edited_3"].filter((name) => w.wired.has(name)).length;
        if (w.wired.has("inversion")) return `${1 + 2 * edits} network rows per step of the inversion`;
        const rows = (w.cfg === 1 ? 1 : 2) * (1 + edits);
        return `${w.steps} steps x ${rows} network rows = ${w.steps * rows}`;
    },
    NullText_SDEdit: (w) => call(w.steps * (1 + parts(w.more_levels))),
    NullText_ILVRSampler: (w) => call(w.steps * (1 + parts(w.strip))),
    NullText_BlendedDiffusion: (w) => call(w.steps) + (String(w.hold).includes("loss") ? ", each with a backward pass" : ""),
    NullText_DiffEditMask: (w) => `${call(w.maps)} with both prompts`,
    NullText_DirectEdit: (w) => {
        if (w.wired.has("sigmas")) return null;
        return `at most ${call(2 * w.average * Math.round(w.steps * w.strength))}`;
    },
    NullText_OptimiseStartNoise: (w) => {
        if (w.wired.has("inversion")) return null;
        const rows = w.cfg === 1 ? 1 : 2, steps = w.iterations * w.steps * rows;
        return `at most ${2 * steps} forwards and ${steps} backwards`;
    },
};

/** What a rule says of the widgets; null where it reads one whose value comes through a wire, so that the page can't know.
 * @template T @param {((w: Widgets) => T)|undefined} rule @param {Widgets} widgets @returns {T|null} */
export function told(rule, widgets) {
    let known = true;
    const said = rule?.(new Proxy(widgets, { get(all, name) {
        if (all.wired.has(name)) known = false;
        return all[/** @type {string} */ (name)];
    } }));
    return known ? said ?? null : null;
}

/** The line for a node, or null where the class has no formula or its inputs don't tell.
 * @param {string} type @param {Widgets} widgets */
export const costOf = (type, widgets) => told(FORMULAS[type], widgets);

/** The classes that have a formula. */
export const COSTED = Object.keys(FORMULAS);
