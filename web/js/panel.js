// What all panels share: the style, small elements, and the container under a node's widgets.
import { addPanel } from "./adapter.js";

const STYLE = `
.nulltext-panel { box-sizing: border-box; overflow: hidden; font: 11px/1.4 system-ui, sans-serif; pointer-events: auto;
    --text: var(--input-text, #ddd); --muted: color-mix(in srgb, var(--text) 60%, #888);
    --warm: color-mix(in srgb, var(--text) 45%, #f80); --cool: color-mix(in srgb, var(--text) 45%, #39f); color: var(--text); }
.nulltext-in-body { width: 260px; min-width: calc(100% - 32px); margin: 0 16px; cursor: default; }
.nulltext-panel .nulltext-inner { display: flex; flex-direction: column; gap: 6px; }
.nulltext-panel button { font: inherit; color: #fff; border: 1px solid transparent; border-radius: 9px; padding: 1px 7px;
    cursor: pointer; background: hsl(220, 8%, 36%); }
.nulltext-panel button:focus-visible, .nulltext-panel input:focus-visible { outline: 2px solid #6cf; outline-offset: 1px; }
.nulltext-panel button[aria-pressed="true"] { border-color: var(--text); }
.nulltext-panel button.stale { text-decoration: line-through; background: #622; }
.nulltext-panel input[type=text] { font: inherit; color: inherit; background: var(--comfy-input-bg, #222); border: 1px solid #6cf; border-radius: 9px; padding: 1px 7px; }
.nulltext-swap-section, .nulltext-chips-section { display: flex; flex-direction: column; gap: 4px; }
.nulltext-row { display: flex; flex-wrap: wrap; gap: 4px; align-items: center; }
.nulltext-chips { max-height: 96px; overflow-y: auto; }
.nulltext-panel input[type=range] { flex: 1; min-width: 60px; margin: 0; accent-color: #6af; }
.nulltext-panel a { color: var(--cool); }
.nulltext-advice { color: var(--warm); }
.nulltext-muted { color: var(--muted); }
.nulltext-report { white-space: pre-wrap; overflow-wrap: anywhere; max-height: 110px; overflow-y: auto; user-select: text; }
.nulltext-picture { position: relative; width: 100%; margin: 0 auto; color: #ddd; background: #111; }
.nulltext-heat, .nulltext-picked { max-width: 320px; }
.nulltext-strengths { max-width: 220px; }
.nulltext-read { max-height: 96px; overflow-y: auto; }
.nulltext-picture img { display: block; width: 100%; image-rendering: auto; }
.nulltext-picture img + img { position: absolute; inset: 0; height: 100%; }
.nulltext-picture .divider { position: absolute; top: 0; bottom: 0; width: 2px; background: #fff; pointer-events: none; }
.nulltext-picture .side { position: absolute; top: 2px; padding: 0 4px; background: #0009; pointer-events: none; }
.nulltext-picture input[type=range] { position: absolute; inset: 0; width: 100%; height: 100%; opacity: 0; cursor: ew-resize; }
.nulltext-picture:has(input:focus-visible) { outline: 2px solid #6cf; }
.nulltext-timeline svg { display: block; width: 100%; background: #0003; }
.nulltext-timeline .window { fill: #fff2; }
.nulltext-timeline .down { stroke: var(--cool); stroke-width: 1.2; fill: none; vector-effect: non-scaling-stroke; }
.nulltext-timeline .up { stroke: var(--warm); stroke-width: 1.2; fill: none; vector-effect: non-scaling-stroke; }
.nulltext-timeline .axis { stroke: var(--muted); fill: none; vector-effect: non-scaling-stroke; }
.nulltext-timeline text { fill: var(--muted); font: 8px system-ui, sans-serif; }`;

/** @param {string} tag @param {Record<string, any>} attributes @param {...(Node|string)} children @returns {any} */
export function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
        if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
        else if (name.startsWith("aria-")) element.setAttribute(name, String(value));
        else if (value === true) element.setAttribute(name, "");
        else if (value !== false && value != null) element.setAttribute(name, String(value));
    }
    element.append(...children);
    return element;
}

/** The panel of a node: sections in this order, made when first asked for.
 * @param {any} node @returns {(name: string) => HTMLElement} */
export function panelOf(node) {
    if (!document.getElementById("nulltext-style")) {
        document.head.append(make("style", { id: "nulltext-style" }, STYLE));
    }
    const inner = make("div", { class: "nulltext-inner" });
    const outer = make("div", { class: "nulltext-panel" }, inner);
    const order = ["picker", "swap", "chips", "advice", "cost", "timeline", "picture", "report"];
    const resized = addPanel(node, outer, () => inner.offsetHeight);
    new ResizeObserver(resized).observe(inner);
    for (const kind of ["pointerdown", "mousedown", "dblclick"]) outer.addEventListener(kind, (event) => event.stopPropagation());
    outer.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
        if (!event.ctrlKey && !event.metaKey) event.stopPropagation();  // Delete must not delete the node
    });
    /** @type {Record<string, HTMLElement>} */
    const sections = {};
    return (name) => {
        if (!sections[name]) {
            sections[name] = make("div", { class: `nulltext-${name}-section`, style: `order:${order.indexOf(name)}` });
            inner.append(sections[name]);
        }
        return sections[name];
    };
}
