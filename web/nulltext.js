// The page's side of ComfyUI-NullText: what each node shows under its widgets.
import { ADVISED, adviceFor } from "./js/advice.js";
import { clearPreview, has, keepSeed, onOurNodes, onResult, openNamed, samplerOf, values, watch } from "./js/adapter.js";
import { CHIPS, addChips } from "./js/chips.js";
import { COSTED, costOf } from "./js/cost.js";
import { make, panelOf } from "./js/panel.js";
import { addPicker } from "./js/picker.js";
import { showCompare, showHeat, showStrengths } from "./js/pictures.js";
import { SWAPS, addSwap } from "./js/swap.js";
import { TIMELINES, addTimeline } from "./js/timeline.js";

const IN_BLUEPRINTS = ["NullText_EditPhoto"];  // these show their panel on the blueprint's node too
const SEED_STAYS = ["NullText_InvertImage"];  // most of its ways draw nothing, and a new seed would do all behind it anew
const TOLD = ["image", "source_prompt", "edited_prompt"];  // what words and advice there need: not every subgraph shows it
const PICTURES = ["nulltext_heat", "nulltext_strengths", "a_images"];

openNamed();
onOurNodes(IN_BLUEPRINTS, (node, type) => {
    const section = panelOf(node), tells = () => !node.subgraph || has(node, TOLD);
    if (type === "NullText_LoadPicture") addPicker(node, section("picker"));
    if (SWAPS[type]) {
        addSwap(node, SWAPS[type], section("swap"));
        watch(node, () => tells() ? "" : "none", () => { section("swap").style.display = tells() ? "" : "none"; });
    }
    if (CHIPS[type]) addChips(node, CHIPS[type], section("chips"));
    if (TIMELINES[type]) addTimeline(node, type, section("timeline"));
    if (COSTED.includes(type)) {
        const line = make("div", { class: "nulltext-cost nulltext-muted" });
        section("cost").append(line);
        const cost = () => costOf(type, values(node)) ?? "";
        watch(node, cost, () => { line.textContent = cost() && `Cost: ${cost()}`; });
    }
    if (ADVISED.includes(type)) {
        const line = make("div", { class: "nulltext-advice", role: "status" });
        section("advice").append(line);
        const said = () => tells() ? adviceFor(type, { ...values(node), sampler: samplerOf(node) }) : "";
        watch(node, said, () => { line.textContent = said(); });
    }
    onResult(node, type, (output) => {
        if (output.nulltext_heat?.length) showHeat(section("picture"), output.nulltext_heat[0]);
        if (output.nulltext_strengths?.length) {
            clearPreview(node);
            showStrengths(section("picture"), output.nulltext_strengths[0]);
        }
        if (output.a_images?.length && output.b_images?.length) {
            clearPreview(node);
            setTimeout(() => clearPreview(node), 800);  // the last preview may come after the result
            showCompare(section("picture"), output.a_images, output.b_images, output.nulltext_said ?? [],
                String([].concat(output.nulltext_what ?? "edit")[0]));
        }
        if (output.text?.length) {
            if (!PICTURES.some((name) => output[name]?.length)) section("picture").replaceChildren();  // of another run
            section("report").replaceChildren(make("div", { class: "nulltext-report", role: "status", tabindex: "0" },
                [].concat(output.text).join("\n")));
        }
    });
}, (node, type) => { if (SEED_STAYS.includes(type)) keepSeed(node); });
