"""What a person sees and does on the page, in both front ends."""

import base64
import json
import re
import shutil

import pytest
from nulltext.tools import workflows
from PIL import Image

REWEIGHT = "NullText_AttentionReweight"


def test_it_loads_without_trouble(page):
    known = page.tab.evaluate("Object.keys(LiteGraph.registered_node_types).filter(n => n.startsWith('NullText_'))")
    assert sorted(known) == sorted(name for name in page.infos if name.startswith("NullText_"))
    page.shot("first")


def test_a_new_invert_image_keeps_its_seed_and_one_that_was_told_otherwise_too(page):
    control = "n => n.widgets.find(w => w.name === 'control_after_generate')"
    begun = page.tab.evaluate(
        f"""() => {{
            const seed = {control};
            const [ours, theirs] = ['NullText_InvertImage', 'KSampler'].map(kind => {{
                const node = LiteGraph.createNode(kind);
                app.graph.add(node);
                return node;
            }});
            const before = [seed(ours).value, seed(theirs).value];
            seed(ours).value = 'increment';
            const copy = LiteGraph.createNode('NullText_InvertImage');
            copy.configure({{...ours.serialize(), id: 99999}});
            app.graph.add(copy);
            return [...before, seed(copy).value];
        }}"""
    )
    assert begun == ["fixed", "randomize", "increment"]


def test_chips_set_a_factor_that_is_saved_loaded_and_queued(page):
    page.load("attention_reweight", weights="")
    page.look_at(REWEIGHT)
    panel = page.panel(REWEIGHT)
    chips = panel.locator("[data-word]")
    chips.first.wait_for()
    words = [chip.get_attribute("data-word") for chip in chips.all()]
    assert len(words) >= 3, words
    word = words[-1]
    chip = panel.locator(f"[data-word='{word}']").first
    chip.click()
    slider = panel.locator("input[type=range]").first
    slider.fill("2.5")
    assert page.value(REWEIGHT, "weights") == f"{word}: 2.5"
    chip.focus()
    page.tab.keyboard.press("ArrowUp")
    assert f"{word} 2.75" in panel.inner_text()
    page.shot("chips")
    saved = page.saved()
    node = min((n for n in json.loads(saved)["nodes"] if n["type"] == REWEIGHT), key=lambda n: n["id"])
    assert node["widgets_values"][0] == f"{word}: 2.75"
    page.tab.evaluate("app.graph.clear()")
    page.drop("saved.json", saved)
    page.tab.wait_for_function("app.graph._nodes.length > 3")
    page.look_at(REWEIGHT)
    page.panel(REWEIGHT).locator(f"text={word} 2.75").first.wait_for()
    page.queue()
    queued = page.prompt[str(node["id"])]
    assert queued["inputs"] == {**queued["inputs"], "weights": f"{word}: 2.75"}
    assert not [name for name in queued["inputs"] if "panel" in name]
    page.panel(REWEIGHT).locator(".nulltext-report", has_text=word).wait_for()


def test_a_changed_prompt_leaves_a_stale_chip_that_can_be_taken_out(page):
    page.load("attention_reweight", weights="unicorn: 2")
    page.look_at(REWEIGHT)
    stale = page.panel(REWEIGHT).locator("button.stale")
    stale.wait_for()
    assert stale.inner_text() == "unicorn 2"
    stale.click()
    assert page.value(REWEIGHT, "weights") == ""
    assert page.panel(REWEIGHT).locator("button.stale").count() == 0


def test_heat_maps_over_the_picture_by_word(page):
    page.load("attention_map")
    page.queue()
    page.look_at("NullText_AttentionMap")
    panel = page.panel("NullText_AttentionMap")
    heat = panel.locator(".nulltext-heat img").nth(1)
    heat.wait_for()
    page.tab.wait_for_function("e => e.complete && e.naturalWidth > 16", arg=heat.element_handle())
    first = heat.get_attribute("src")
    words = panel.locator("[role=group][aria-label='heat map of'] button")
    assert words.count() >= 2
    words.nth(1).click()
    assert heat.get_attribute("src") != first
    assert words.nth(1).get_attribute("aria-pressed") == "true"
    page.tab.wait_for_timeout(400)
    page.shot("heat")


def test_before_and_after_with_a_divider(page):
    page.load("null_text")
    page.queue()
    page.look_at("NullText_Inverter")
    panel = page.panel("NullText_Inverter")
    compare = panel.locator(".nulltext-compare")
    compare.wait_for()
    page.tab.wait_for_function(
        "e => [...e.querySelectorAll('img')].every(i => i.complete && i.naturalWidth > 16)",
        arg=compare.element_handle(),
    )
    assert "PSNR" in panel.inner_text() and "forwards" in panel.inner_text()
    compare.locator("input").fill("80")
    assert "20%" in compare.locator("img").nth(1).get_attribute("style")
    page.shot("compare")


def test_a_slider_over_the_strengths_of_a_direction(page):
    page.load("asyrp", batch_size=2, strengths="0, 1.5, 4")
    page.queue()
    page.look_at("NullText_HSpaceMap")
    panel = page.panel("NullText_HSpaceMap")
    picture = panel.locator(".nulltext-strengths img")
    picture.wait_for()
    page.tab.wait_for_function("e => e.complete && e.naturalWidth === 128", arg=picture.element_handle())
    assert picture.get_attribute("alt") == "at strength 4" and "strength 4" in panel.inner_text()
    last, meters = picture.get_attribute("src"), panel.locator("meter")
    read = "m => m.map(e => e.value)"
    before = meters.evaluate_all(read)
    assert len(before) == 6 and abs(sum(before[:3]) - 1) < 1e-3 and abs(sum(before[3:]) - 1) < 1e-3
    panel.locator("input[type=range]").first.fill("0")
    assert picture.get_attribute("alt") == "at strength 0" and picture.get_attribute("src") != last
    assert meters.evaluate_all(read) != before
    assert "blue background" in panel.locator(".nulltext-read").inner_text()
    page.tab.wait_for_timeout(300)
    page.shot("strengths")


PHOTO = "NullText_EditPhoto"


def test_click_a_word_type_another_and_the_edit_stands_beside_the_source(page):
    """The first five minutes: a sample picture, one word changed, the result under a divider at full size."""
    page.load("edit_photo", steps=4)
    view = page.tab.evaluate("[app.canvas.ds.scale, ...app.canvas.ds.offset]")
    page.look_at("NullText_LoadPicture")
    picked = page.panel("NullText_LoadPicture").locator("img")
    page.tab.wait_for_function("e => e.complete && e.naturalWidth === 128", arg=picked.element_handle())
    page.shot("picture")
    page.look_at(PHOTO)
    panel = page.panel(PHOTO)
    words = panel.locator("[data-swap]")
    words.first.wait_for()
    assert "green" in panel.locator("[data-swap][aria-pressed=true]").inner_text()
    circle = next(i for i in range(words.count()) if words.nth(i).inner_text() == "circle")
    words.nth(circle).click()
    panel.locator("input[type=text]").fill("square")
    page.tab.keyboard.press("Enter")
    edited = "a photo of a large green square in the middle, striped blue background"
    assert page.value(PHOTO, "edited_prompt") == edited
    assert "circle \u2192 square" in words.nth(circle).inner_text()
    page.shot("swap")
    page.queue()
    assert next(n for n in page.prompt.values() if n["class_type"] == PHOTO)["inputs"]["edited_prompt"] == edited
    page.look_at(PHOTO)
    compare = page.panel(PHOTO).locator(".nulltext-compare")
    compare.wait_for()
    page.tab.wait_for_function(
        "e => [...e.querySelectorAll('img')].every(i => i.complete && i.naturalWidth === 128)",
        arg=compare.element_handle(),
    )
    page.tab.wait_for_timeout(2000)
    blurred = "kind => { const n = ofKind(kind); return [n.imgs?.length ?? 0, !!app.nodePreviewImages?.[n.id]]; }"
    assert page.tab.evaluate(blurred, PHOTO) == [0, False], "the blurred preview gives way to the result"
    assert "outside the mask" in page.panel(PHOTO).inner_text()
    title, below = page.frame(PHOTO)
    assert title == "2 edit" and 0 <= below <= 40, "the frame follows the node, preview and result"
    page.tab.evaluate("([s, x, y]) => { app.canvas.ds.scale = s; app.canvas.ds.offset = [x, y]; }", view)
    page.tab.evaluate("app.canvas.setDirty(true, true)")
    page.tab.wait_for_timeout(700)
    page.shot("edit_photo")
    box, size = compare.bounding_box(), page.tab.viewport_size
    if not page.kind.endswith("vue"):  # Nodes 2.0 draws every node larger than the file says
        assert box["x"] > 0 and box["x"] + box["width"] < size["width"], "seen as the workflow opens"
        assert box["y"] > 0 and box["y"] + box["height"] < size["height"], "seen as the workflow opens"


def test_a_picture_is_uploaded_and_chosen(page, tmp_path):
    page.load("edit_photo")
    page.look_at("NullText_LoadPicture")
    panel = page.panel("NullText_LoadPicture")
    mine = tmp_path / f"mine_{page.kind}.png"
    Image.new("RGB", (96, 64), "orange").save(mine)
    panel.locator("input[type=file]").set_input_files(mine)
    page.tab.wait_for_function(
        "name => ofKind('NullText_LoadPicture').widgets.find(w => w.name === 'image').value === name", arg=mine.name
    )
    page.tab.wait_for_function("e => e.naturalWidth === 96", arg=panel.locator("img").element_handle())
    page.queue()
    queued = next(n for n in page.prompt.values() if n["class_type"] == "NullText_LoadPicture")
    assert queued["inputs"]["image"] == mine.name
    page.shot("uploaded")


def test_a_picture_is_dropped_on_the_panel_uploaded_again_and_pasted(page, tmp_path):
    kind = "NullText_LoadPicture"
    chosen = "name => ofKind('NullText_LoadPicture').widgets.find(w => w.name === 'image').value === name"
    page.put(kind)
    panel, mine = page.panel(kind), tmp_path / f"dropped_{page.kind}.png"
    said = panel.locator("[role=status]")
    said.locator("text=128 x 128").wait_for()
    Image.new("RGB", (96, 64), "green").save(mine)
    box = panel.locator("img").bounding_box()
    page.drop_file(mine, box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.tab.wait_for_function(chosen, arg=mine.name, timeout=5_000)
    said.locator("text=96 x 64").wait_for()
    panel.locator("input[type=file]").set_input_files(mine)
    said.locator("text=96 x 64").wait_for(timeout=5_000)
    page.tab.evaluate(
        """([name, data]) => {
        const clipboardData = new DataTransfer(), bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
        clipboardData.items.add(new File([bytes], name, {type: 'image/png'}));
        app.canvas.selectNode(ofKind('NullText_LoadPicture'));
        window.paste = (into, bubbles) => !into.dispatchEvent(
            new ClipboardEvent('paste', {clipboardData, bubbles, cancelable: true}));
    }""",
        [f"pasted_{page.kind}.png", base64.b64encode(mine.read_bytes()).decode()],
    )
    taken = page.tab.evaluate("""() => {
        const field = document.body.appendChild(document.createElement('input')), taken = paste(field, false);
        field.remove();
        return taken;
    }""")
    assert not taken, "a text field keeps what is pasted into it"
    assert page.tab.evaluate("paste(app.canvas.canvas, true)")
    page.tab.wait_for_function(chosen, arg=f"pasted_{page.kind}.png", timeout=5_000)
    assert page.tab.evaluate("app.graph._nodes.map(n => n.type)") == [kind], "no Load Image beside it"


def test_what_a_panel_says_can_be_read_in_a_dark_and_in_a_light_theme(page):
    page.put(PHOTO)
    picture = {"filename": "x.png"}
    page.ran(PHOTO, text=["done"], a_images=[picture], b_images=[picture], nulltext_said=["PSNR"])
    page.panel(PHOTO).locator(".nulltext-advice", has_text="picture").wait_for()
    for text, ground in (("#ddd", "#353535"), ("#222", "#f5f5f5")):
        contrasts = page.tab.evaluate(
            """([text, ground]) => {
            const brush = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
            const light = colour => {
                brush.fillStyle = colour;
                brush.fillRect(0, 0, 1, 1);
                const [r, g, b] = [...brush.getImageData(0, 0, 1, 1).data].map(
                    c => c / 255 <= 0.03928 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4);
                return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
            };
            document.documentElement.style.setProperty('--input-text', text);
            const found = ['report', 'muted', 'advice', 'picture-section a'].map(name => {
                const [a, b] = [ground, getComputedStyle(document.querySelector(`.nulltext-${name}`)).color].map(light);
                return [name, Math.max(a / b, b / a)];
            });
            document.documentElement.style.removeProperty('--input-text');
            return found;
        }""",
            [text, ground],
        )
        assert all(contrast >= 4.5 for _, contrast in contrasts), (ground, contrasts)


def test_a_result_without_pictures_takes_away_those_of_the_run_before(page):
    page.put(PHOTO)
    picture, panel = {"filename": "x.png"}, page.panel(PHOTO)
    page.ran(PHOTO, text=["first"], a_images=[picture], b_images=[picture])
    panel.locator(".nulltext-compare").wait_for()
    page.ran(PHOTO, text=["second"])
    assert "second" in panel.inner_text() and panel.locator(".nulltext-compare").count() == 0


def test_the_wheel_over_a_long_report_scrolls_it_and_zooms_nothing(page):
    if page.kind == "checkout-vue":
        pytest.skip("Nodes 2.0 of front end 1.27 takes every turn of the wheel")
    page.put(PHOTO)
    page.ran(PHOTO, text=[f"line {i}" for i in range(40)])
    report = page.panel(PHOTO).locator(".nulltext-report")
    report.click()
    page.tab.mouse.wheel(0, 60)
    page.tab.wait_for_function("e => e.scrollTop > 0", arg=report.element_handle(), timeout=5_000)
    assert page.tab.evaluate("app.canvas.ds.scale") == 1


def test_a_clicked_word_becomes_the_mask_of_the_fill(page):
    page.load("word_mask", words="")
    kind = "NullText_WordMask"
    page.look_at(kind)
    chip = page.panel(kind).locator("[data-word=square]").first
    chip.click()
    assert page.value(kind, "words") == "square"
    page.queue()
    page.look_at(kind)
    heat = page.panel(kind).locator(".nulltext-heat img").nth(1)
    page.tab.wait_for_function("e => e.complete && e.naturalWidth > 16", arg=heat.element_handle())
    page.shot("word_mask")


def test_a_click_changes_the_wired_prompt_and_the_blend_follows(page):
    page.load("prompt_to_prompt_photo", blend_words="")
    kind = "NullText_PromptToPrompt"
    page.look_at(kind, zoom=0.55)  # a tall node: its panel stands under many widgets
    panel = page.panel(kind)
    word = panel.locator("[data-swap]", has_text="striped").first
    word.click()
    panel.locator("input[type=text]").fill("plain")
    page.tab.keyboard.press("Enter")
    page.queue()
    texts = [n["inputs"]["text"] for n in page.prompt.values() if n["class_type"] == "NullText_Prompt"]
    assert sum("plain blue background" in text for text in texts) == 1 and sum("striped" in text for text in texts) == 1
    assert next(n for n in page.prompt.values() if n["class_type"] == kind)["inputs"]["blend_words"] == "auto"


def test_a_word_that_is_clicked_and_left_changes_nothing_and_one_that_is_typed_holds(page):
    kind = "NullText_PromptToPrompt"
    page.put("NullText_Prompt", kind)
    page.tab.evaluate(
        """kind => {
        const source = ofKind('NullText_Prompt'), edited = LiteGraph.createNode('NullText_Prompt'), node = ofKind(kind);
        app.graph.add(edited);
        window.editedPrompt = edited.widgets.find(w => w.name === 'text');
        source.widgets.find(w => w.name === 'text').value = window.editedPrompt.value = 'a red circle';
        source.connect(0, node, node.inputs.findIndex(i => i.name === 'source'));
        edited.connect(0, node, node.inputs.findIndex(i => i.name === 'edited'));
    }""",
        kind,
    )
    page.look_at(kind, zoom=0.55)
    panel = page.panel(kind)
    red, circle = (panel.locator("[data-swap]", has_text=word) for word in ("red", "circle"))
    state = lambda: (page.value(kind, "blend_words"), page.tab.evaluate("editedPrompt.value"))  # noqa: E731
    red.click()
    box = panel.locator("input[type=text]")
    page.tab.wait_for_function("e => document.activeElement === e", arg=box.element_handle())
    box.blur()
    red.wait_for()
    assert state() == ("", "a red circle")
    red.click()
    box.fill("green")
    circle.click()
    panel.locator("input[aria-label='what circle shall become']").wait_for()
    assert state() == ("auto", "a green circle")


@pytest.mark.parametrize(
    ("name", "kind", "widget", "value"),
    [
        ("repaint", "NullText_RePaintSampler", "schedule", "ours, about 350 calls"),
        ("disturbance_picture", "NullText_DisturbanceSampler", "steps_below", 20),
    ],
)
def test_the_timeline_follows_the_widgets_before_a_run(page, name, kind, widget, value):
    page.load(name)
    page.look_at(kind)
    section = page.panel(kind).locator(".nulltext-timeline-section")
    section.locator("svg .down").wait_for()
    before = section.inner_text()
    page.tab.evaluate(
        """([kind, name, value]) => {
        ofKind(kind).widgets.find(w => w.name === name).value = value;
    }""",
        [kind, widget, value],
    )
    page.tab.wait_for_function("([e, before]) => e.innerText !== before", arg=[section.element_handle(), before])
    page.tab.wait_for_timeout(300)
    page.shot(f"timeline_{name}")


def test_a_schedule_is_drawn_as_it_arrives(page):
    """Null-Text Disturbance draws what the Disturbance Schedule before it makes, not the scheduler's steps behind."""
    page.load("disturbance")
    steps = {}
    for kind in ("NullText_DisturbanceSchedule", "NullText_Disturbance"):
        page.look_at(kind)
        section = page.panel(kind).locator(".nulltext-timeline-section")
        section.locator("svg .down").wait_for()
        steps[kind] = section.inner_text().split(" steps")[0].split()[-1]
    assert len(set(steps.values())) == 1 and int(steps.popitem()[1]) > 10, steps


def test_the_help_panel_shows_our_page(page):
    if not page.modern:
        pytest.skip("the page of 2024 has no help panel")
    page.load("repaint")
    page.look_at("NullText_RePaintSampler")
    page.tab.evaluate("""() => {
        app.canvas.selectNode(ofKind('NullText_RePaintSampler'));
        app.canvas.setDirty(true, true);
    }""")
    page.tab.wait_for_timeout(500)
    page.shot("selected")
    page.tab.locator("[data-testid='info-button'], button:has(.icon-\\[lucide--info\\])").first.click()
    page.tab.locator("text=Fills a mask so that it agrees with the rest of the picture").first.wait_for(timeout=15_000)
    page.shot("help")


@pytest.mark.parametrize("name", list(filter(workflows.runs_here, workflows.names())))
def test_every_workflow_opens_and_runs_from_the_pages_own_button(page, name):
    if page.kind == "checkout-vue" and name not in ("null_text", "repaint", "prompt_to_prompt"):
        pytest.skip("Nodes 2.0 draws the same graph: three stand for all")
    page.load(name)
    entry = page.queue()
    assert any(output.get("images") for output in entry["outputs"].values())
    asked = {key: (node["class_type"], node["inputs"]) for key, node in page.prompt.items()}
    ran = [asked[key] for key in page.executed & asked.keys()]  # the newer engine runs equal nodes once
    idle = [node for node in asked.values() if node not in ran]
    assert not idle, f"never executed: {idle}"
    page.fit()
    page.shot(f"workflow_{name}")
    if not page.kind.endswith("vue"):  # that one draws every node, core's too, larger than its saved size
        assert not page.overlaps()
    compared = 0
    for said in page.reports():
        cost, _, report = said.partition("Cost:")[2].partition("\n")
        told = re.search(r"(\d+) network calls?(?: there, (\d+) back)?", cost)
        done = re.search(r"(\d+) network calls|network calls (\d+)", report)
        if told and done:
            compared += 1
            assert int(done[1] or done[2]) <= int(told[1]) + int(told[2] or 0), said
    assert compared or name != "direct_edit"  # which tells both


def test_the_address_of_make_serve_opens_edit_a_photo_and_one_click_edits_it(page):
    """The first useful picture, within three clicks of the address that `make serve` prints."""
    shelf = page.server.tree / "user" / "default" / "workflows" / "NullText"
    shelf.mkdir(parents=True, exist_ok=True)
    shutil.copy(workflows.FOLDER / "edit_photo.json", shelf)
    page.tab.goto(page.server.address + "/?nulltext=edit_photo")
    page.tab.wait_for_function(
        "kind => !!window.app?.graph && window.app.graph._nodes.some(n => n.type === kind)", arg=PHOTO, timeout=60_000
    )
    page.tab.wait_for_timeout(600)
    page.queue()
    page.panel(PHOTO).locator(".nulltext-compare").wait_for()
    page.shot("first_minutes")
    page.look_at(PHOTO)
    panel = page.panel(PHOTO)
    panel.locator("[data-swap]", has_text="circle").click()
    panel.locator("input[type=text]").fill("square")
    page.tab.keyboard.press("Enter")
    mine = page.value(PHOTO, "edited_prompt")
    assert "square" in mine
    page.tab.wait_for_timeout(3500 if page.modern else 1500)  # until the page has kept it
    page.tab.reload()
    page.tab.wait_for_function("kind => !!window.app?.graph && !!ofKind(kind)", arg=PHOTO, timeout=60_000)
    page.tab.wait_for_timeout(1000)
    assert page.value(PHOTO, "edited_prompt") == mine, "reloading brings back a person's own work"
