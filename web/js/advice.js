// What would fail or do nothing, said in the node before it runs. Pure functions: widget values in, one sentence out.
import { told } from "./cost.js";
import { parseList, phrase } from "./words.js";

/** @typedef {Record<string, any>} Widgets  values by name; `wired` holds the names of the wired inputs; `sampler` is the
 * name of the sampler that the node's guider runs with, if a core node chooses it */

const filled = (/** @type {Widgets} */ w, /** @type {string} */ name) => w.wired.has(name) || String(w[name] ?? "").trim() !== "";
const picture = (/** @type {Widgets} */ w) => w.wired.has("image") || w.wired.has("latent") ? "" : "Wire a picture into image, or a latent.";
const negative = (/** @type {Widgets} */ w, /** @type {string[]} */ scales) =>
    scales.some((name) => w[name] !== 1) && !w.wired.has("negative")
        ? `With ${scales.join(" or ")} above 1, wire the empty prompt into negative.` : "";
const fractions = (/** @type {any} */ text) => parseList(String(text ?? ""))
    .every((part) => Number(part) >= 0 && Number(part) <= 1);
const euler = (/** @type {Widgets} */ w) => w.sampler && w.sampler !== "euler"
    ? `The sampler ${w.sampler} does not walk an inversion back: wire the SAMPLER of Inversion Parts, or choose euler.` : "";

/** @param {Widgets} w */
function pair(w) {
    const kept = parseList(w.keep_words ?? "").map(phrase);
    const both = parseList(w.blend_words ?? "").map(phrase).find((word) => kept.includes(word));
    return both ? `"${both}" stands in blend_words and in keep_words: take it out of one.`
        : !w.wired.has("source") && !w.wired.has("inversion") ? "Wire the source prompt, or an inversion that knows it." : "";
}

/** @param {Widgets} w */
const prompts = (w) => !filled(w, "source_prompt") ? "Write what the picture shows into source_prompt."
    : !filled(w, "edited_prompt") ? "Write what it shall show into edited_prompt, or click a word." : "";

/** @type {Record<string, (w: Widgets) => string>} */
const RULES = {
    NullText_EditPhoto: (w) => picture(w) || prompts(w),
    NullText_WordMask: (w) => picture(w) || (filled(w, "words") ? "" : "Click a word."),
    NullText_PromptToPrompt: (w) => pair(w)
        || (w.wired.has("latent") || w.wired.has("inversion") ? "" : "Wire an empty latent, or an inversion."),
    NullText_PromptToPromptGuider: (w) => pair(w) || (w.wired.has("inversion") ? euler(w) : ""),
    NullText_Guider: euler,
    NullText_DirectEdit: (w) => negative(w, ["source_cfg", "target_cfg"]),
    NullText_InvertImage: (w) => negative(w, ["cfg"]),
    NullText_Inverter: (w) => w.cfg === 1 && /null-text|negative/.test(w.correction) ? "At cfg 1 there is no null branch to correct: set the cfg you will edit with." : "",
    NullText_Optimise: (w) => w.cfg === 1 ? "At cfg 1 there is no null branch to correct: set the cfg you will edit with." : "",
    NullText_Disturbance: (w) => w.cfg <= 1 ? "At cfg 1 there is no null branch, so nothing changes: set cfg above 1." : "",
    NullText_DisturbanceSampler: (w) => w.cfg <= 1 ? "At cfg 1 there is no null branch, so nothing changes: set cfg above 1." : "",
    NullText_SDEdit: (w) => fractions(w.more_levels) ? "" : "more_levels are numbers from 0 to 1 with commas between them.",
    NullText_EditGrid: (w) => !fractions(w.strengths) ? "strengths are numbers from 0 to 1 with commas between them."
        : filled(w, "prompts") ? "" : "Write one edited prompt per line.",
};

/** The sentence for a node, "" where nothing is wrong. @param {string} type @param {Widgets} widgets */
export const adviceFor = (type, widgets) => told(RULES[type], widgets) ?? "";

/** The classes that have a rule. */
export const ADVISED = Object.keys(RULES);
