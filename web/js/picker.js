// The picture of Load Picture, with the ways to bring one's own: a button, dropping a file on the node, pasting.
import { onFiles, pictureUrl, sampleUrl, setValue, upload, value, watch } from "./adapter.js";
import { make } from "./panel.js";

const MARK = " [sample]";

/** Where the page finds a picture by the name that the node keeps. @param {string} name */
export function urlOf(name) {
    if (name.endsWith(MARK)) return sampleUrl(name);
    const [, plain, type] = name.match(/^(.*?)(?: \[(input|output|temp)\])?$/) ?? ["", name];
    const cut = plain.lastIndexOf("/");
    return pictureUrl({ filename: plain.slice(cut + 1), subfolder: plain.slice(0, Math.max(cut, 0)), type: type ?? "input" });
}

/** @param {any} node @param {HTMLElement} place */
export function addPicker(node, place) {
    const picture = make("img", { alt: "the picture" });
    const said = make("span", { class: "nulltext-muted", role: "status" });
    const file = make("input", { type: "file", accept: "image/*", style: "display:none", "aria-label": "your picture",
        onchange: () => take([...file.files]) });
    const button = make("button", { type: "button", onclick: () => file.click() }, "upload your picture");
    place.append(make("div", { class: "nulltext-row" }, button, said, file),
        make("div", { class: "nulltext-picture nulltext-picked" }, picture));
    picture.addEventListener("load", () => { picture.style.display = ""; said.textContent = `${picture.naturalWidth} x ${picture.naturalHeight}`; });
    picture.addEventListener("error", () => { picture.style.display = "none"; said.textContent = "this picture is not there"; });

    /** @param {File[]} files */
    async function take(files) {
        const [chosen] = files.filter((one) => one.type.startsWith("image/"));
        if (!chosen) return;
        said.textContent = "uploading ...";
        const name = await upload(chosen);
        if (!name) { said.textContent = "the upload failed"; return; }
        setValue(node, "image", name, true);
        picture.src = urlOf(name);  // the same name again is no change that would be seen
    }

    onFiles(node, take);
    watch(node, () => String(value(node, "image") ?? ""), () => {
        const name = String(value(node, "image") ?? "");
        if (name) picture.src = urlOf(name);
    });
}
