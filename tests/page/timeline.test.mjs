import assert from "node:assert/strict";
import { test } from "node:test";
import { Graph, app, node } from "./front_end.mjs";

const { query } = await import("../../web/js/timeline.js");

test("a schedule is asked for while all its numbers stand in widgets", () => {
    const graph = app.graph = new Graph(), sampler = graph.add(node("NullText_RePaintSampler", { levels: 50, jump: 10 }));
    assert.deepEqual(query(sampler, "NullText_RePaintSampler"), { kind: "repaint", levels: 50, jump: 10, ckpt: "" });
    graph.wire(graph.add(node("PrimitiveInt", { value: 3 })), sampler, "jump", "INT");
    assert.equal(query(sampler, "NullText_RePaintSampler"), null);
});

test("the scheduler's steps are asked for, unless they come through a wire", () => {
    const graph = app.graph = new Graph(), scheduler = graph.add(node("BasicScheduler", { steps: 20, scheduler: "karras" }));
    const at = graph.add(node("NullText_DisturbanceSchedule", { cfg: 3 }));
    graph.wire(scheduler, at, "sigmas", "SIGMAS");
    assert.deepEqual(query(at, "NullText_DisturbanceSchedule"), { kind: "disturbance", cfg: 3, scheduler: "karras", steps: 20, ckpt: "" });
    graph.wire(null, scheduler, "steps", "INT");
    assert.equal(query(at, "NullText_DisturbanceSchedule"), null);
});
