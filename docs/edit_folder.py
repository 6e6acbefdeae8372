"""Edits a folder's pictures: python edit_folder.py WORKFLOW PHOTOS EDITED "TITLE.INPUT=VALUE" ... (see docs/api.md)."""

import hashlib
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path

import requests

SERVER = os.environ.get("COMFYUI_SERVER", "127.0.0.1:8188").rstrip("/")
SERVER = SERVER if "://" in SERVER else f"http://{SERVER}"
file, photos, edited, *settings = sys.argv[1:] if sys.argv[3:] else sys.exit(__doc__)
doing = f"reading {file} as a workflow in API format"
sys.excepthook = lambda kind, error, _: print(f"Stopped while {doing}: {kind.__name__}: {error}", file=sys.stderr)

workflow = json.loads(Path(file).read_text(encoding="utf-8"))
titles = {key: n.get("_meta", {}).get("title", n["class_type"]) for key, n in workflow.items()}
places = [(f"{titles[key]}.{name}", n["inputs"], name) for key, n in workflow.items() for name in n["inputs"]]
for setting in settings:  # "title of the node.name of its input=value"
    doing, (called, _, value) = f"setting {setting}", setting.partition("=")
    found = [place for place in places if place[0] == called]
    if len(found) != 1:
        known = ", ".join(place[0] for place in places)
        sys.exit(f"The workflow has {len(found) or 'no'} {called}; give a node a title of its own. It has: {known}.")
    _, inputs, name = found[0]
    inputs[name] = value if isinstance(inputs[name], str) else json.loads(value.lower().replace(",", "."))

loaders = [n["inputs"] for n in workflow.values() if n["class_type"] in ("NullText_LoadPicture", "LoadImage")]
if not loaders:
    sys.exit(f"{file} loads no picture: it has neither Load Picture nor Load Image.")
doing = f"reading the folders {photos} and {edited}"
kinds = (".png", ".jpg", ".jpeg", ".webp")
found = [path for path in sorted(Path(photos).iterdir()) if path.suffix.lower() in kinds and path.is_file()]
stems, failed = Counter(path.stem for path in found), False
Path(edited).mkdir(parents=True, exist_ok=True)
for photo in found:
    doing = f"asking {SERVER} about {photo.name}"
    data, made = photo.read_bytes(), Counter()
    name = f"{photo.stem}-{hashlib.sha1(data).hexdigest()[:12]}{photo.suffix}"  # replaces nobody else's picture
    sent = requests.post(f"{SERVER}/upload/image", files={"image": (name, data)}, data={"overwrite": "true"})
    if not sent.ok:
        failed = True
        print(photo.name, "could not be uploaded:", sent.reason)
        continue
    loaders[0]["image"] = sent.json()["name"]
    answer = requests.post(f"{SERVER}/prompt", json={"prompt": workflow}).json()
    if not (ticket := answer.get("prompt_id")):
        wrong = [error for n in answer.get("node_errors", {}).values() for error in n["errors"]]
        said = "; ".join(f"{e['message']}: {e['details']}" for e in wrong) or json.dumps(answer)
        sys.exit(f"{photo.name} was refused: {said}")
    entry, waiting = None, True
    while waiting and not entry:  # what has left the queue is in the history, unless somebody took it out
        time.sleep(0.3)
        waiting = ticket in requests.get(f"{SERVER}/queue").text
        entry = requests.get(f"{SERVER}/history/{ticket}").json().get(ticket)
    entry = entry or {"outputs": {}, "status": {"status_str": "removed", "messages": [["removed", {}]]}}
    for key, picture in [(key, p) for key, output in entry["outputs"].items() for p in output.get("images", ())]:
        name = f"{photo.stem if stems[photo.stem] == 1 else photo.name} {titles.get(key, key)}"
        name = "".join("_" if c in r'\/:*?"<>|' else c for c in name)
        made[name] += 1
        number = f" {made[name]}" if made[name] > 1 else ""
        result = requests.get(f"{SERVER}/view", params=picture).content
        Path(edited, name + number + Path(picture["filename"]).suffix).write_bytes(result)
    bad = entry["status"]["status_str"] != "success"
    failed |= bad
    why = entry["status"]["messages"][-1][1].get("exception_message", "was interrupted, or taken out of the queue")
    print(photo.name, why if bad else "done")
sys.exit(failed)
