import assert from "node:assert/strict";
import { test } from "node:test";
import { ADVISED, adviceFor } from "../../web/js/advice.js";

const w = (values, ...wired) => ({ ...values, wired: new Set(wired) });
const cases = [
    ["NullText_EditPhoto", w({ source_prompt: "a cat", edited_prompt: "a dog" }, "image"), w({ source_prompt: "a cat", edited_prompt: "a dog" }), /Wire a picture/],
    ["NullText_EditPhoto", w({ source_prompt: "a cat", edited_prompt: "a dog" }, "latent"), w({ source_prompt: " ", edited_prompt: "a dog" }, "latent"), /source_prompt/],
    ["NullText_WordMask", w({ words: "cat" }, "image"), w({ words: "" }, "image"), /Click a word/],
    ["NullText_PromptToPrompt", w({}, "source", "latent"), w({}, "source"), /empty latent/],
    ["NullText_PromptToPrompt", w({ blend_words: "cat", keep_words: "dog" }, "inversion"), w({ blend_words: "Cat, dog", keep_words: "dog" }, "inversion"), /"dog" stands in/],
    ["NullText_PromptToPromptGuider", w({ sampler: "euler" }, "inversion"), w({ sampler: "dpmpp_2m" }, "inversion"), /dpmpp_2m/],
    ["NullText_PromptToPromptGuider", w({ sampler: "dpmpp_2m" }, "source"), w({}, "negative"), /source prompt/],
    ["NullText_Guider", w({ sampler: "" }), w({ sampler: "euler_ancestral" }), /Inversion Parts/],
    ["NullText_DirectEdit", w({ source_cfg: 1, target_cfg: 1 }), w({ source_cfg: 1, target_cfg: 2 }), /negative/],
    ["NullText_InvertImage", w({ cfg: 3.5 }, "negative"), w({ cfg: 3.5 }), /negative/],
    ["NullText_Inverter", w({ cfg: 1, correction: "direct overwrite" }), w({ cfg: 1, correction: "null-text" }), /null branch/],
    ["NullText_Optimise", w({ cfg: 7.5 }), w({ cfg: 1 }), /null branch/],
    ["NullText_Disturbance", w({ cfg: 10 }), w({ cfg: 1 }), /above 1/],
    ["NullText_DisturbanceSampler", w({ cfg: 10 }), w({ cfg: 1 }), /above 1/],
    ["NullText_SDEdit", w({ more_levels: "0.2; 0.4" }), w({ more_levels: "0.2, 4" }), /0 to 1/],
    ["NullText_EditGrid", w({ strengths: "0.5", prompts: "a cat" }), w({ strengths: "much", prompts: "a cat" }), /0 to 1/],
];

for (const [type, good, bad, said] of cases) {
    test(`${type} says ${said}`, () => {
        assert.equal(adviceFor(type, good), "");
        assert.match(adviceFor(type, bad), said);
    });
}

test("what comes through a wire is not read off the widget under it", () => {
    for (const name of ["source_prompt", "edited_prompt"]) {
        const typed = { source_prompt: "a cat", edited_prompt: "a dog", [name]: "" };
        assert.match(adviceFor("NullText_EditPhoto", w(typed, "image")), new RegExp(name));
        assert.equal(adviceFor("NullText_EditPhoto", w(typed, "image", name)), "");
    }
    assert.match(adviceFor("NullText_EditPhoto", w({}, "image", "source_prompt")), /edited_prompt/);
    assert.equal(adviceFor("NullText_WordMask", w({ words: "" }, "image", "words")), "");
    assert.equal(adviceFor("NullText_EditGrid", w({ strengths: "0.5", prompts: "" }, "prompts")), "");
    assert.equal(adviceFor("NullText_Disturbance", w({ cfg: 1 }, "cfg")), "");
});

test("every rule has a case", () => assert.deepEqual([...new Set(cases.map(([type]) => type))].sort(), [...ADVISED].sort()));
