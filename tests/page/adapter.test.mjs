import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";
import { Graph, api, app, node } from "./front_end.mjs";

const { clearPreview, onOurNodes, onResult, setValue, upstream, watch } = await import("../../web/js/adapter.js");
const PHOTO = "NullText_EditPhoto";
let graph, made, seen;

onOurNodes([PHOTO], (at, type) => {
    made.push(at);
    watch(at, () => {
        if (at.throws) throw new Error("this panel is broken");
        return String(++at.looks);
    }, () => seen.push(at));
    onResult(at, type, () => seen.push(at));
});

beforeEach(() => { app.graph = graph = new Graph(); made = []; seen = []; });

/** A node as the page makes it: not yet on a graph. */
function created(type, more = {}) {
    const at = Object.assign(node(type), { looks: 0 }, more);
    app.extension.nodeCreated(at);
    return at;
}

function looked() {
    seen.length = 0;
    app.tick();
    return [...seen];
}

test("a node has its panel once it is on a graph; a copy that never gets there has none", () => {
    const photo = created(PHOTO);
    created(PHOTO);
    assert.deepEqual(made, []);
    graph.add(photo);
    assert.deepEqual(made, [photo]);
    assert.deepEqual(looked(), [photo]);
});

test("a node that was taken away is looked at no more, and again when it comes back, with one panel", () => {
    const photo = graph.add(created(PHOTO));
    graph.remove(photo);
    assert.deepEqual(looked(), []);
    graph.add(photo);
    assert.deepEqual(looked(), [photo]);
    assert.deepEqual(made, [photo]);
});

test("what loading leaves behind without a word is looked at no more", () => {
    const photo = graph.add(created(PHOTO)), inner = new Graph("inner");
    graph.subgraphs = new Map([["inner", inner]]);
    const within = inner.add(created(PHOTO));
    assert.deepEqual(looked(), [photo, within]);
    graph.subgraphs.clear();
    assert.deepEqual(looked(), [photo]);
    graph.nodes.clear();
    assert.deepEqual(looked(), []);
});

test("a subgraph's node hears what runs inside it, while it is on the page", () => {
    const host = created("a-subgraph", { subgraph: { nodes: [{ type: PHOTO, id: 7 }] } });
    graph.add(host);
    const heard = (id) => { seen.length = 0; api.executed({ detail: { node: id, output: {} } }); return seen.length; };
    assert.equal(heard("1:7"), 1);
    assert.equal(heard("1:8"), 0);
    graph.remove(host);
    assert.equal(heard("1:7"), 0);
    graph.add(host);
    assert.equal(heard("1:7"), 1);
});

test("a panel that can't be drawn stops no other, and is told once", (t) => {
    const warned = t.mock.method(console, "warn", () => {});
    const broken = graph.add(created(PHOTO, { throws: true })), sound = graph.add(created(PHOTO));
    assert.deepEqual(looked(), [sound]);
    assert.deepEqual(looked(), [sound]);
    assert.equal(warned.mock.callCount(), 1);
    broken.throws = false;
    assert.deepEqual(looked(), [broken, sound]);
});

test("the preview that is taken away is the node's own, in a subgraph too", () => {
    const inner = new Graph("inner"), store = { nodePreviewImages: {} }, previews = app.nodePreviewImages = {};
    const keys = ["1", "2", "inner:1"], page = { config: { globalProperties: { $pinia: { _s: new Map([["nodeOutput", store]]) } } } };
    const left = () => [Object.keys(previews), Object.keys(store.nodePreviewImages)];
    graph.subgraphs = new Map([["inner", inner]]);
    document.getElementById = () => ({ __vue_app__: page });
    for (const key of keys) previews[key] = store.nodePreviewImages[key] = ["blob:"];
    clearPreview(inner.add(node(PHOTO)));
    assert.deepEqual(left(), [["1", "2"], ["1", "2"]]);
    clearPreview(graph.add(node(PHOTO)));
    assert.deepEqual(left(), [["2"], ["2"]]);
    const revoked = [];
    store.revokePreviewsByLocatorId = (key) => revoked.push(key);
    for (const at of [...inner.nodes.values(), ...graph.nodes.values()]) clearPreview(at);
    assert.deepEqual(revoked, ["inner:1", "1"]);
});

test("wires that part and meet again are followed once", () => {
    let last = graph.add(created("CLIPTextEncode"));
    for (let i = 0; i < 30; i++) {
        const apply = graph.add(created("ControlNetApplyAdvanced"));
        for (const name of ["positive", "negative"]) graph.wire(last, apply, name, "CONDITIONING");
        last = apply;
    }
    let asked = 0;
    assert.equal(upstream(last, () => ++asked > 1000, ["CONDITIONING"]), null);
    assert.equal(asked, 31);
});

test("what panels change is noted by the page once they rest, by the newer page's name where it has one", async () => {
    const at = graph.add(node(PHOTO)), counts = { older: 0, newer: 0 };
    at.widgets = [{ name: "steps", value: 1 }];
    const tracker = { checkState() { counts.older += this === tracker; } };
    app.extensionManager = { workflow: { activeWorkflow: { changeTracker: tracker } } };
    const moved = async (...values) => {
        for (const value of values) setValue(at, "steps", value);
        await new Promise((done) => setTimeout(done, 350));
        return { ...counts };
    };
    assert.deepEqual(await moved(2, 3), { older: 1, newer: 0 });
    assert.deepEqual(await moved(3), { older: 1, newer: 0 });
    tracker.captureCanvasState = function () { counts.newer += this === tracker; };
    assert.deepEqual(await moved(4), { older: 1, newer: 1 });
    delete app.extensionManager;
});
