import assert from "node:assert/strict";
import { test } from "node:test";
import { COSTED, costOf } from "../../web/js/cost.js";
import { heights, places, timelineSvg } from "../../web/js/svg.js";

const drawing = { sigmas: [10, 3, 1, 0], path: [0, 1, 0, 1, 2, 3], window: [3, 0.5], calls: 4 };

test("levels fall down the picture and zero lies at its foot", () => {
    const y = heights(drawing.sigmas);
    assert.ok(y(10) < y(3) && y(3) < y(1) && y(1) < y(0));
    const points = places(drawing);
    assert.equal(points.length, 6);
    assert.ok(points.every((p, i) => i === 0 || p.x > points[i - 1].x));
    assert.equal(points[0].y, points[2].y);
});

test("jumps up are drawn apart from steps down, the window is shaded, the calls are written", () => {
    const svg = timelineSvg(drawing), of = (name) => svg.match(new RegExp(`class="${name}" d="([^"]*)"`))[1];
    assert.equal(of("down").split("M").length - 1, 4);
    assert.equal(of("up").split("M").length - 1, 1);
    assert.match(svg, /class="window"/);
    assert.match(svg, />4<\/text>/);
    assert.doesNotMatch(svg, /NaN|Infinity/);
    assert.doesNotMatch(timelineSvg({ ...drawing, window: [0, 0] }), /class="window"/);
});

test("degenerate schedules draw without NaN", () => {
    for (const sigmas of [[1, 0], [0, 0], [5, 5]]) {
        assert.doesNotMatch(timelineSvg({ sigmas, path: [0, 1], window: [9, 0], calls: 1 }), /NaN|Infinity/);
    }
});

test("cost lines", () => {
    const w = (values, ...wired) => ({ ...values, wired: new Set(wired) });
    const inverter = { steps: 50, inner_steps: 10, pivot: "DDIM", iterations: 5, correction: "null-text" };
    assert.equal(costOf("NullText_Inverter", w(inverter)), "at most 50 + 600 forwards and 500 backwards");
    assert.equal(costOf("NullText_Inverter", w({ ...inverter, correction: "global null-text" })),
        "at most 50 + 650 forwards and 500 backwards");
    assert.equal(costOf("NullText_Optimise", w({ inner_steps: 10, embeddings: "one per step" })),
        "per step at most 12 forwards and 10 backwards");
    assert.equal(costOf("NullText_Optimise", w({ inner_steps: 10, embeddings: "one for all steps (the ablation)" })),
        "per step at most 13 forwards and 10 backwards");
    assert.equal(costOf("NullText_Inverter", w({ ...inverter, correction: "none" })), "at most 100 network calls");
    assert.equal(costOf("NullText_Inverter", w({ ...inverter, pivot: "fixed point", correction: "direct overwrite" })),
        "at most 300 network calls");
    assert.equal(costOf("NullText_Inverter", w(inverter, "sigmas")), null);
    const invert = { steps: 20, iterations: 5, cfg: 1, pivot: "exact pair" };
    assert.equal(costOf("NullText_InvertImage", w(invert)), "at most 25 network calls there, 19 back");
    assert.equal(costOf("NullText_InvertImage", w({ ...invert, cfg: 3 })),
        "at most 25 network calls there, 19 back, two network rows each");
    assert.equal(costOf("NullText_InvertImage", w({ ...invert, pivot: "fixed point" })),
        "at most 120 network calls there, 20 back");
    assert.equal(costOf("NullText_InvertImage", w({ ...invert, pivot: "edit-friendly DDPM", cfg: 7.5 })),
        "at most 20 network calls there, 20 back, two network rows each");
    assert.equal(costOf("NullText_PromptToPrompt", w({ steps: 50, cfg: 7.5 })), "50 steps x 4 network rows = 200");
    assert.equal(costOf("NullText_PromptToPrompt", w({ steps: 50, cfg: 7.5 }, "inversion", "edited_2")),
        "5 network rows per step of the inversion");
    assert.equal(costOf("NullText_SDEdit", w({ steps: 30, more_levels: "0.3, 0.7" })), "90 network calls");
    assert.equal(costOf("NullText_SDEdit", w({ steps: 30, more_levels: "0.3; 0.7\n0.8" })), "120 network calls");
    assert.equal(costOf("NullText_SDEdit", w({ steps: 30, more_levels: "0.3" }, "steps")), null);
    assert.equal(costOf("NullText_SDEdit", w({ steps: 30, more_levels: "0.3" }, "cfg")), "60 network calls");
    assert.equal(costOf("NullText_Inverter", w({ ...inverter, correction: null })), "at most 100 network calls");
    assert.equal(costOf("NullText_SDEdit", w({ steps: 1, more_levels: "" })), "1 network call");
    assert.equal(costOf("NullText_DirectEdit", w({ steps: 2, strength: 0.8, average: 1 })), "at most 4 network calls");
    assert.equal(costOf("NullText_Prompt", w({})), null);
    assert.ok(COSTED.length >= 10);
});
