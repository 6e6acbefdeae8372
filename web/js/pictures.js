// Pictures of a result inside its node: heat maps switchable by word, and before / after with a divider.
import { pictureUrl } from "./adapter.js";
import { make } from "./panel.js";

/** @param {HTMLElement} place @param {{words: string[], opacity: number, base: any[], heat: any[]}} maps */
export function showHeat(place, maps) {
    let word = 0, picture = 0;
    const base = make("img", { alt: "the picture" }), heat = make("img", {});
    const names = make("div", { class: "nulltext-row", role: "group", "aria-label": "heat map of" });
    const slider = make("input", { type: "range", min: 0, max: 1, step: 0.05, "aria-label": "opacity of the heat map",
        oninput: () => { heat.style.opacity = slider.value; } });
    slider.value = String(maps.opacity);
    heat.style.opacity = String(maps.opacity);

    function draw() {
        base.src = pictureUrl(maps.base[picture]);
        heat.src = pictureUrl(maps.heat[picture * maps.words.length + word]);
        heat.alt = `where "${maps.words[word]}" looks`;
        names.replaceChildren(make("span", { class: "nulltext-muted" }, "heat map of"), ...maps.words.map((name, i) => make("button", { type: "button", "aria-pressed": i === word,
            onclick: () => { word = i; draw(); } }, name)), ...turns(maps.base.length, picture, (to) => { picture = to; draw(); }));
    }

    draw();
    place.replaceChildren(names, make("div", { class: "nulltext-picture nulltext-heat" }, base, heat),
        make("label", { class: "nulltext-row" }, "heat", slider));
}

/** @param {HTMLElement} place @param {any[]} before @param {any[]} after @param {string[]} lines one per picture
 * @param {string} what the second picture's name */
export function showCompare(place, before, after, lines, what) {
    let picture = 0;
    const left = make("img", { alt: what }), right = make("img", { alt: "source" });
    const divider = make("div", { class: "divider" });
    const slider = make("input", { type: "range", min: 0, max: 100, step: 1, oninput: () => move(),
        "aria-label": `divider between source (left) and ${what} (right)` });
    const said = make("div", { class: "nulltext-row" });

    function move() {
        right.style.clipPath = `inset(0 ${100 - Number(slider.value)}% 0 0)`;
        divider.style.left = `${slider.value}%`;
    }

    function draw() {
        left.src = pictureUrl(after[picture]);
        right.src = pictureUrl(before[picture]);
        said.replaceChildren(make("span", {}, lines[picture] ?? ""),
            make("a", { href: right.src, target: "_blank", title: "open it in a tab of its own" }, "source"),
            make("a", { href: left.src, target: "_blank", title: "open it in a tab of its own" }, what),
            ...turns(before.length, picture, (to) => { picture = to; draw(); }));
    }

    slider.value = "50";
    move();
    draw();
    place.replaceChildren(make("div", { class: "nulltext-picture nulltext-compare" }, left, right, divider,
        make("span", { class: "side", style: "left:2px" }, "source"),
        make("span", { class: "side", style: "right:2px" }, what), slider), said);
}

/** Pictures over the strength of a direction, and what is read in them at each.
 * @param {HTMLElement} place
 * @param {{strengths: number[], images: any[], read: {text: string, shares: number[]}[]}} map images: sample by sample */
export function showStrengths(place, map) {
    let sample = 0, at = map.strengths.length - 1;
    const columns = map.strengths.length;
    const shown = make("img", {}), said = make("div", { class: "nulltext-row", role: "status" });
    const read = make("div", { class: "nulltext-read" });
    const slider = make("input", { type: "range", min: 0, max: columns - 1, step: 1, "aria-label": "strength of the direction",
        oninput: () => { at = Number(slider.value); draw(); } });

    function draw() {
        const strength = map.strengths[at];
        shown.src = pictureUrl(map.images[sample * columns + at]);
        shown.alt = `at strength ${strength}`;
        said.replaceChildren(make("span", {}, `strength ${strength}`),
            ...turns(map.images.length / columns, sample, (to) => { sample = to; draw(); }));
        read.replaceChildren(...map.read.map(({ text, shares }) => make("label", { class: "nulltext-row" },
            make("meter", { min: 0, max: 1, value: shares[at] }), `${text} ${shares[at].toFixed(2)}`)));
    }

    slider.value = String(at);
    draw();
    place.replaceChildren(make("div", { class: "nulltext-picture nulltext-strengths" }, shown),
        make("label", { class: "nulltext-row" }, "strength", slider), said, read);
}

/** Buttons to the neighbours in a batch; none for one picture.
 * @param {number} count @param {number} at @param {(to: number) => void} turn */
function turns(count, at, turn) {
    if (count < 2) return [];
    const step = (/** @type {string} */ sign, /** @type {number} */ by, /** @type {string} */ label) => make("button",
        { type: "button", "aria-label": label, onclick: () => turn((at + by + count) % count) }, sign);
    return [step("\u2039", -1, "previous picture"), make("span", {}, `${at + 1} of ${count}`), step("\u203a", 1, "next picture")];
}
