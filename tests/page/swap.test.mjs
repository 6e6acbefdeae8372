import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";
import { Graph, app, node } from "./front_end.mjs";

const { promptAt, textOf } = await import("../../web/js/swap.js");
let graph, photo;
const prompt = () => textOf(promptAt(photo, "source_prompt"));

beforeEach(() => {
    app.graph = graph = new Graph();
    photo = graph.add(node("NullText_EditPhoto", { source_prompt: "what stood there before the wire" }));
});

test("a text comes from the node's own widget, or from the core node that is wired to it", () => {
    assert.equal(prompt(), "what stood there before the wire");
    const text = graph.add(node("PrimitiveString", { value: "a red circle" }));
    graph.wire(text, photo, "source_prompt");
    assert.equal(prompt(), "a red circle");
    assert.deepEqual(promptAt(photo, "source_prompt"), { node: text, widget: "value" });
});

test("a text that a run makes, or that comes from outside a subgraph, is not known", () => {
    const file = graph.add(node("NullText_LoadInversion", { name: "inversion_00001.safetensors" }));
    for (const from of [file, null, graph.add(node("PrimitiveFloat", { value: 1 }))]) {
        photo.inputs = [];
        graph.wire(from, photo, "source_prompt");
        assert.ok(promptAt(photo, "source_prompt"), "there is one");
        assert.equal(prompt(), null);
    }
});

test("behind a wire of a prompt it is the text of the node there, or of what is wired to that", () => {
    const guide = graph.add(node("NullText_PromptToPrompt")), written = graph.add(node("NullText_Prompt", { text: "a cat" }));
    assert.equal(promptAt(guide, "source"), null);
    graph.wire(written, guide, "source", "CONDITIONING");
    assert.deepEqual(promptAt(guide, "source"), { node: written, widget: "text" });
    graph.wire(graph.add(node("PrimitiveNode", { value: "a dog" })), written, "text");
    assert.equal(textOf(promptAt(guide, "source")), "a dog");
});
