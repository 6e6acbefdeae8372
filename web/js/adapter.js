// The only file that knows ComfyUI's front end: the 2024 page and the modern one (canvas nodes and Nodes 2.0).
import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";

const PREFIX = "NullText_";
/** What goes on for a node while it is on the page: `look` a few times a second, `heard` at each result of a run.
 * @type {Set<{node: any, look?: () => void, heard?: (event: any) => void, failed?: boolean}>} */
const watched = new Set();
/** Whether a node is part of the workflow on the page; a copy in the clipboard, or what undo has replaced, is not.
 * @param {any} node */
const onPage = (node) => node.graph?.getNodeById?.(node.id) === node
    && (node.graph === app.graph || app.graph.subgraphs?.get(node.graph.id) === node.graph);
/** A node's body in Nodes 2.0, where that draws the node now. @param {any} node */
const bodyOf = (node) => node.graph === app.canvas?.graph
    ? document.querySelector(`[data-testid="node-body-${node.id}"]`) : null;

const classOf = (/** @type {any} */ node) => node.comfyClass ?? node.constructor?.comfyClass ?? node.type ?? "";

/** The node inside a subgraph's node for which that one stands: the first of these classes, or null.
 * @param {any} node @param {string[]} types */
const insideOf = (node, types) => node.subgraph?.nodes?.find((/** @type {any} */ each) => types.includes(classOf(each))) ?? null;

/** Call `made(node, type)` for every node of this pack when it comes onto a graph, and for every subgraph's node that has
 * one of the classes `shown` inside: its own widgets have the names of that node's. `begun` is called before a node gets
 * the values of a workflow or of the node that it copies.
 * @param {string[]} shown @param {(node: any, type: string) => void} made @param {(node: any, type: string) => void} [begun] */
export function onOurNodes(shown, made, begun = () => {}) {
    app.registerExtension({
        name: "NullText.panels",
        nodeCreated(/** @type {any} */ node) {
            const inside = insideOf(node, shown), type = classOf(inside ?? node);
            if (!inside && !type.startsWith(PREFIX)) return;
            begun(node, type);
            let first = true;
            whenAdded(node, () => {  // copying makes nodes that never come onto a graph
                if (first) guarded({ node }, () => made(node, type));
                first = false;
            });
        },
    });
    api.addEventListener("executed", (/** @type {any} */ event) => {
        for (const entry of watched) if (onPage(entry.node)) guarded(entry, () => entry.heard?.(event));
    });
    document.addEventListener("paste", pasteOnSelected, true);  // before the page, which would make a Load Image of it
    setInterval(() => {
        for (const entry of watched) {
            if (onPage(entry.node)) guarded(entry, () => entry.look?.());
            else watched.delete(entry);
        }
    }, 400);
}

/** The page draws no new seed after a run, unless the user or a workflow asks for it. @param {any} node */
export function keepSeed(node) {
    const control = node.widgets?.find((/** @type {any} */ widget) => widget.name === "control_after_generate");
    if (control) control.value = "fixed";
}

/** Say once what goes wrong: one panel must stop neither the others nor the page.
 * @param {{node: any, failed?: boolean}} entry @param {() => void} act */
function guarded(entry, act) {
    try {
        act();
    } catch (error) {
        if (!entry.failed) console.warn(`NullText: the panel of "${entry.node.title}" can't be drawn.`, error);
        entry.failed = true;
    }
}

/** Open the workflow that the address names, as in ?nulltext=edit_photo: one of those that `make serve` puts on the shelf. */
export function openNamed() {
    const name = new URLSearchParams(window.location.search).get("nulltext") ?? "";
    if (!/^[a-z0-9_]+$/.test(name)) return;
    app.registerExtension({
        name: "NullText.open",
        async setup() {
            const answer = await api.fetchApi(`/userdata/${encodeURIComponent(`workflows/NullText/${name}.json`)}`);
            if (!answer.ok) return;
            const graph = await answer.json();
            const kinds = graph.nodes.map((/** @type {any} */ node) => node.type);
            setTimeout(async () => {
                for (let tries = 0; tries < 3; tries++) {
                    await restored();
                    await app.loadGraphData(structuredClone(graph));
                    await pause(1200);  // a slow page puts back what was open last in its place
                    if (app.graph._nodes.some((/** @type {any} */ node) => kinds.includes(node.type))) break;
                }
                const address = new URL(window.location.href);
                address.searchParams.delete("nulltext");  // reloading brings back the user's own work
                history.replaceState(history.state, "", address);
            }, 300);
        },
    });
}

/** @param {number} ms */
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Until the page has put back what was open last: it says which workflow is open, and says the same for a while. */
async function restored() {
    const open = () => app.extensionManager?.workflow?.activeWorkflow?.path;
    let last = null;
    for (let waited = 0, same = 0; app.extensionManager?.workflow && same < 4 && waited < 40; waited++) {
        await pause(150);
        same = open() && open() === last ? same + 1 : 0;
        last = open();
    }
}

/** Call `then` whenever the node comes onto a graph, for the first time or back. @param {any} node @param {() => void} then */
function whenAdded(node, then) {
    const added = node.onAdded;
    node.onAdded = function () {
        const returned = added?.apply(this, arguments);
        then();
        return returned;
    };
}

/** Keep an entry among the watched while its node is on the page, which it is when this is called.
 * @param {{node: any, look?: () => void, heard?: (event: any) => void}} entry */
function keep(entry) {
    watched.add(entry);
    whenAdded(entry.node, () => watched.add(entry));
}

/** Call `look` a few times a second while the node is on the page. @param {any} node @param {() => void} look */
const often = (node, look) => keep({ node, look });

/** Call `changed` whenever what `signature` returns is another text than before; for the node's life.
 * Values, wires and upstream prompts change in many ways (typing, undo, loading); looking is the one way that sees all.
 * @param {any} node @param {() => string} signature @param {() => void} changed */
export function watch(node, signature, changed) {
    let last = "\0";
    often(node, () => {
        const now = signature();
        if (now !== last) { last = now; changed(); }
    });
}

/** Call `done(output)` with the `ui` record after each run: the node's, or that of the node of a class which a subgraph's
 * node stands for. @param {any} node @param {string} type @param {(output: any) => void} done */
export function onResult(node, type, done) {
    if (node.subgraph) {
        keep({ node, heard: ({ detail }) => {
            const path = String(detail.node).split(":");  // the ids from the outermost subgraph's node inwards
            const mine = path.at(-2) === String(node.id) && path.at(-1) === String(insideOf(node, [type])?.id);
            if (mine && detail.output) done(detail.output);
        } });
        return;
    }
    const before = node.onExecuted;
    node.onExecuted = function (/** @type {any} */ output) {
        const returned = before?.apply(this, arguments);
        if (output) done(output);
        return returned;
    };
}

/** What is known of a frame: its height as a person set it, the height it has now, and what each node in it needs.
 * @type {WeakMap<object, {own: number, now: number, needs: Map<any, number>}>} */
const frames = new WeakMap();

/** Let the frames in which the node stands follow when it grows or shrinks: a result is taller than the room that was
 * seen before. In Nodes 2.0 what is drawn counts, title above `pos` and all. @param {any} node */
function holdInFrames(node) {
    let last = "", before = 0;
    often(node, () => {
        const drawn = /** @type {HTMLElement|null|undefined} */ (bodyOf(node)?.closest(".lg-node"));
        const [x, y] = node.pos, height = Math.round(Math.max(node.size[1], (drawn?.offsetHeight ?? 0) - 30));
        const place = `${x} ${y} ${!!drawn}`, changed = place === last && height !== before;
        [last, before] = [place, height];
        for (const frame of changed ? node.graph._groups ?? [] : []) {
            const [left, top] = frame.pos, [wide, tall] = frame.size;
            if (x < left || x >= left + wide || y < top || y >= top + tall) continue;
            let known = frames.get(frame);
            if (!known || Math.abs(known.now - tall) > 1) known = { own: tall, now: tall, needs: new Map() };
            known.needs.set(node, y + height + 20 - top);
            known.now = Math.max(known.own, ...known.needs.values());
            frames.set(frame, known);
            if (known.now !== tall) frame.size = [wide, known.now];
            node.setDirtyCanvas?.(true, true);
        }
    });
}

/** Put an element under the node's widgets. It is never saved and never queued.
 * Nodes 2.0 of front end 1.27 draws a fixed list of widget types and no element of a pack: there the element joins the
 * node's body by hand, again whenever zooming or scrolling made the body anew. Later ones show it by themselves.
 * @param {any} node @param {HTMLElement} element @param {() => number} height in pixels @returns {() => void} call it
 * when the height has changed */
export function addPanel(node, element, height) {
    const tall = () => Math.max(height(), 2) + 20;
    const widget = node.addDOMWidget("nulltext_panel", "nulltext_panel", element, {
        serialize: false, hideOnZoom: false, getValue: () => "", setValue: () => {},
        getMinHeight: tall, getMaxHeight: tall, getHeight: tall,
    });
    widget.serialize = false;
    element.dataset.captureWheel = "true";  // Nodes 2.0 then leaves the wheel to a panel that has the focus
    element.addEventListener("dragover", (event) => {  // the canvas under the panel does not see it
        if (!node.onDragOver?.(event)) return;
        event.preventDefault();
        app.dragOverNode = node;  // where the page puts what is dropped
    });
    element.addEventListener("dragleave", () => { if (app.dragOverNode === node) app.dragOverNode = null; });
    holdInFrames(node);
    often(node, () => {
        if (node.subgraph && !node.widgets.includes(widget)) node.widgets.push(widget);  // loading made its list anew
        const body = bodyOf(node);
        if (body && !element.isConnected) {
            body.querySelector(":scope > .nulltext-in-body")?.remove();  // of a node that had this id before
            body.append(element);
        }
        element.classList.toggle("nulltext-in-body", !!body && element.parentElement === body);
    });
    let last = 0;
    return () => {
        if (!node.graph || tall() === last || bodyOf(node)) return;  // Nodes 2.0 measures its nodes itself
        const grown = tall() - last;
        last = tall();
        const wanted = node.computeSize?.()[1] ?? 0;
        if (node.size[1] < wanted || grown < 0) node.setSize?.([node.size[0], Math.max(wanted, node.size[1] + Math.min(grown, 0))]);
        node.onResize?.(node.size);
        node.setDirtyCanvas?.(true, true);
    };
}

/** @param {any} node @param {string} name */
const widgetOf = (node, name) => node?.widgets?.find((/** @type {any} */ widget) => widget.name === name);

/** A widget's value, undefined if the node has none of that name. @param {any} node @param {string} name */
export const value = (node, name) => widgetOf(node, name)?.value;

/** Whether a node has these inputs, as widgets or for wires; a subgraph's node shows what its maker chose.
 * @param {any} node @param {string[]} names */
export const has = (node, names) => names.every((name) => widgetOf(node, name)
    || node.inputs?.some((/** @type {any} */ input) => input.name === name));

/** Set a widget as if a person had typed it. @param {any} node @param {string} name @param {any} to
 * @param {boolean} list put the value into a list's choices too */
export function setValue(node, name, to, list = false) {
    const widget = widgetOf(node, name);
    if (!widget || widget.value === to) return;
    const choices = widget.options?.values;
    if (list && Array.isArray(choices) && !choices.includes(to)) choices.unshift(to);
    widget.value = to;
    if (widget.inputEl && widget.inputEl.value !== to) widget.inputEl.value = to;
    widget.callback?.(to, app.canvas, node);
    node.setDirtyCanvas?.(true, true);
    clearTimeout(noting);
    noting = setTimeout(note, 300);  // one step of undo for a slider's way
}

let noting = 0;

/** Have the page note what a panel changed, for undo and for its own copy of the work: by itself it only notes what keys
 * and clicks on the canvas do. */
function note() {
    const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker;
    (tracker?.captureCanvasState ?? tracker?.checkState)?.call(tracker);  // the newer page's name first
}

/** All widget values by name, and `wired`: the names of inputs that have a wire. @param {any} node */
export function values(node) {
    /** @type {Record<string, any>} */
    const found = { wired: new Set() };
    for (const widget of node.widgets ?? []) {
        if (widget.name !== "nulltext_panel") found[widget.name] = widget.value;
    }
    for (const input of node.inputs ?? []) if (input.link != null) found.wired.add(input.name);
    return found;
}

/** @param {any} node @param {string} name */
const linkOf = (node, name) => node.inputs?.find((/** @type {any} */ input) => input.name === name)?.link;

/** Whether an input has a wire. @param {any} node @param {string} name */
export const wired = (node, name) => linkOf(node, name) != null;

/** The node at the other end of an input's wire, or null. @param {any} node @param {string} name */
export function source(node, name) {
    const link = linkOf(node, name);
    if (link == null || !node.graph) return null;
    const wire = node.graph.getLink?.(link) ?? node.graph.links?.[link];
    return wire ? node.graph.getNodeById(wire.origin_id) : null;
}

/** The name of the widget in which a core node keeps a text that it hands on as it is; null for every other node.
 * @param {any} node */
export function plainText(node) {
    if (!node || !/^Primitive(Node|String(Multiline)?)$/.test(classOf(node))) return null;
    const texts = (node.widgets ?? []).filter((/** @type {any} */ widget) => typeof widget.value === "string" && widget.type !== "combo");
    return texts.length === 1 ? texts[0].name : null;
}

/** The first node that `wanted` accepts: this one or, input by input, what feeds it through wires of these types.
 * @param {any} node @param {(node: any) => boolean} wanted @param {string[]} types @returns {any} */
export function upstream(node, wanted, types, seen = new Set()) {
    if (!node || seen.has(node)) return null;
    seen.add(node);
    if (wanted(node)) return node;
    for (const input of node.inputs ?? []) {
        if (input.link == null || !(types.includes(input.type) || input.type === "*")) continue;
        const found = upstream(source(node, input.name), wanted, types, seen);
        if (found) return found;
    }
    return null;
}

/** The nodes that an output's wires lead to. @param {any} node */
export function targets(node) {
    const found = [];
    for (const output of node.outputs ?? []) {
        for (const link of output.links ?? []) {
            const wire = node.graph?.getLink?.(link) ?? node.graph?.links?.[link];
            const target = wire && node.graph.getNodeById(wire.target_id);
            if (target) found.push(target);
        }
    }
    return found;
}

/** The name of the sampler that the runs of a guider use, where a core node chooses it; else "". @param {any} node */
export function samplerOf(node) {
    for (const user of targets(node)) {
        const chosen = value(source(user, "sampler"), "sampler_name");
        if (typeof chosen === "string") return chosen;
    }
    return "";
}

/** The address of a picture that a result names. @param {{filename: string, subfolder?: string, type?: string}} file */
export function pictureUrl(file) {
    const query = new URLSearchParams({ filename: file.filename, subfolder: file.subfolder ?? "", type: file.type ?? "temp" });
    return api.apiURL(`/view?${query}`);
}

/** The address of a picture of the pack. @param {string} name */
export const sampleUrl = (name) => api.apiURL(`/nulltext/sample?${new URLSearchParams({ name })}`);

/** Put a file into ComfyUI's input folder. @param {File} file @returns {Promise<string|null>} the name it has there */
export async function upload(file) {
    const body = new FormData();
    body.append("image", file);
    try {
        const answer = await api.fetchApi("/upload/image", { method: "POST", body });
        const { name, subfolder } = await answer.json();
        return subfolder ? `${subfolder}/${name}` : name;
    } catch {
        return null;
    }
}

const picturesIn = (/** @type {DataTransfer|null} */ data) => [...(data?.files ?? [])].filter((file) => file.type.startsWith("image/"));
/** What takes pasted pictures, by node. @type {WeakMap<object, (files: File[]) => any>} */
const takers = new WeakMap();

/** @param {ClipboardEvent} event */
function pasteOnSelected(event) {
    const files = picturesIn(event.clipboardData);
    const node = Object.values(app.canvas?.selected_nodes ?? {}).find((each) => takers.has(each));
    const writing = event.target instanceof Element && event.target.closest("input, textarea, [contenteditable]");
    if (!files.length || !node || writing) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    takers.get(node)?.(files);
}

/** Call `take(files)` for pictures dropped on the node, or pasted while it is selected.
 * @param {any} node @param {(files: File[]) => any} take */
export function onFiles(node, take) {
    takers.set(node, take);
    node.onDragOver = (/** @type {DragEvent} */ event) => [...(event.dataTransfer?.items ?? [])].some((item) => item.kind === "file");
    node.onDragDrop = (/** @type {DragEvent} */ event) => {
        const files = picturesIn(event.dataTransfer);
        if (files.length) take(files);
        return files.length > 0;
    };
}

/** Take away the blurred live preview that the page leaves under a node after its run, and the room that the node has
 * taken for it, unless a person made it larger than its content. @param {any} node */
export function clearPreview(node) {
    const fits = () => node.computeSize?.()[1] ?? 0;
    const fitted = !bodyOf(node) && node.size[1] <= fits() + 1;
    // Nodes 2.0 watches a store of its page; elsewhere they are a plain record
    const page = /** @type {any} */ (document.getElementById("vue-app"))?.__vue_app__;
    const store = page?.config?.globalProperties?.$pinia?._s?.get("nodeOutput");
    const key = app.graph.subgraphs?.has(node.graph?.id) ? `${node.graph.id}:${node.id}` : String(node.id);
    if (store?.revokePreviewsByLocatorId) store.revokePreviewsByLocatorId(key);
    else for (const previews of [app.nodePreviewImages, store?.nodePreviewImages]) delete previews?.[key];
    node.imgs = node.preview = node.images = undefined;
    const at = node.widgets?.findIndex((/** @type {any} */ widget) => widget.name === "$$canvas-image-preview") ?? -1;
    if (at >= 0) {
        node.widgets[at].onRemove?.();
        node.widgets.splice(at, 1);
        if (fitted && fits() < node.size[1]) node.setSize?.([node.size[0], fits()]);
    }
    node.setDirtyCanvas?.(true, true);
}

/** JSON from one of the pack's own addresses, or null. @param {string} path @param {Record<string, any>} query */
export async function ask(path, query) {
    try {
        const answer = await api.fetchApi(`/nulltext/${path}?${new URLSearchParams(query)}`);
        return answer.headers.get("content-type")?.includes("json") ? await answer.json() : null;
    } catch {
        return null;
    }
}
