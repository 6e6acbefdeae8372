// The schedule of RePaint and of the disturbance, drawn in the node before anything runs; it follows the widgets.
import { ask, source, targets, upstream, value, watch, wired } from "./adapter.js";
import { make } from "./panel.js";
import { timelineSvg } from "./svg.js";

/** @type {Record<string, {kind: string, widgets: string[], sigmas: string}>} sigmas: where a wired schedule comes from */
export const TIMELINES = {
    NullText_RePaintSampler: { kind: "repaint", sigmas: "",
        widgets: ["schedule", "levels", "jump", "resamples", "low", "high", "noise", "mode", "particles"] },
    NullText_RePaint: { kind: "repaint", sigmas: "sampler",
        widgets: ["schedule", "jump", "resamples", "low", "high", "noise", "mode", "particles"] },
    NullText_DisturbanceSampler: { kind: "disturbance", sigmas: "",
        widgets: ["cfg", "start_percent", "denoise", "steps_above", "steps_below"] },
    NullText_DisturbanceSchedule: { kind: "disturbance", sigmas: "input",
        widgets: ["cfg", "start_percent", "steps_above", "steps_below"] },
    NullText_Disturbance: { kind: "disturbance", widgets: ["cfg", "start_percent", "end_percent"], sigmas: "input" },
};

const hasSteps = (/** @type {any} */ node) => value(node, "steps") !== undefined;

/** What the schedule depends on; null while a wire is missing that decides it, or one brings a number that only a run knows.
 * @param {any} node @param {string} type */
export function query(node, type) {
    const spec = TIMELINES[type];
    /** @type {Record<string, any>} */
    const found = { kind: spec.kind };
    let known = true;
    function read(/** @type {any} */ at, /** @type {string} */ name) {
        if (wired(at, name)) known = false;
        if (value(at, name) !== undefined) found[name] = value(at, name);
    }
    for (const name of spec.widgets) read(node, name);
    if (spec.sigmas) {
        const user = spec.sigmas === "sampler" ? targets(node)[0] : node;
        const at = user && (upstream(source(user, "sigmas"), hasSteps, ["SIGMAS"])
            ?? (spec.sigmas === "input" ? targets(node).find(hasSteps) : null));
        if (!at) return null;
        found.scheduler = "normal";
        for (const name of ["steps", "scheduler"]) read(at, name);
        const shaped = upstream(source(user, "sigmas"), (other) => value(other, "steps_below") !== undefined, ["SIGMAS"]);
        if (shaped) for (const name of ["steps_above", "steps_below"]) read(shaped, name);
    }
    const user = spec.sigmas === "sampler" ? targets(node)[0] ?? node : node;
    const loader = upstream(user, (other) => value(other, "ckpt_name") !== undefined, ["MODEL", "GUIDER"]);
    found.ckpt = loader ? value(loader, "ckpt_name") : "";
    return known ? found : null;
}

/** @param {any} node @param {string} type @param {HTMLElement} place */
export function addTimeline(node, type, place) {
    let asked = 0;
    const picture = make("div", { class: "nulltext-timeline" }), said = make("div", { class: "nulltext-muted" });
    place.append(picture, said);

    async function draw() {
        const mine = ++asked, wanted = query(node, type);
        const answer = wanted && await ask("schedule", wanted);
        if (mine !== asked) return;
        if (!answer || answer.error || answer.path.length < 2) {
            picture.replaceChildren();
            said.textContent = answer?.error ?? answer?.said ?? (wanted ? "" : "The schedule is drawn here once a scheduler is wired and all numbers stand in widgets.");
            return;
        }
        picture.innerHTML = timelineSvg(answer);  // numbers only
        picture.firstElementChild?.setAttribute("aria-label", answer.said);
        said.textContent = `${answer.said} (noise levels of ${answer.noise})`;
    }

    watch(node, () => JSON.stringify(query(node, type)), draw);
}
