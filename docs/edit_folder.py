"""Edits a folder's pictures: python edit_folder.py WORKFLOW PHOTOS EDITED "TITLE.INPUT=VALUE" ... (see docs/api.md)."""

import json
import os
import sys
from pathlib import Path

import requests
import websocket

SERVER = os.environ.get("COMFYUI_SERVER", "127.0.0.1:8188").rpartition("://")[2]
file, photos, edited, *settings = sys.argv[1:] if sys.argv[3:] else sys.exit(__doc__)
Path(edited).mkdir(parents=True, exist_ok=True)
workflow = json.loads(Path(file).read_text(encoding="utf-8"))
titles = {key: n.get("_meta", {}).get("title", n["class_type"]) for key, n in workflow.items()}
places = {f"{titles[key]}.{name}": (n["inputs"], name) for key, n in workflow.items() for name in n["inputs"]}
for setting in settings:  # "title of the node.name of its input=value"
    place, _, value = setting.partition("=")
    if place not in places:
        sys.exit(f"The workflow has no {place}. What it has: {', '.join(places)}.")
    inputs, name = places[place]
    inputs[name] = value if isinstance(inputs[name], str) else json.loads(value.lower().replace(",", "."))
loader = next(n["inputs"] for n in workflow.values() if n["class_type"] in ("NullText_LoadPicture", "LoadImage"))
client, names, failed, kinds = os.urandom(16).hex(), [], False, (".png", ".jpg", ".jpeg", ".webp")
socket = websocket.create_connection(f"ws://{SERVER}/ws?clientId={client}")
for photo in sorted(path for path in Path(photos).iterdir() if path.suffix.lower() in kinds):
    loader["image"] = requests.post(f"http://{SERVER}/upload/image", files={"image": photo.open("rb")}).json()["name"]
    answer = requests.post(f"http://{SERVER}/prompt", json={"prompt": workflow, "client_id": client}).json()
    if not (ticket := answer.get("prompt_id")):
        sys.exit(f"{photo.name} was refused: {json.dumps(answer.get('node_errors') or answer)}")
    while not (entry := requests.get(f"http://{SERVER}/history/{ticket}").json().get(ticket)):
        socket.recv()  # the server says when something happened; the history has the result
    for key, picture in [(key, p) for key, output in entry["outputs"].items() for p in output.get("images", ())]:
        names.append("".join("_" if c in r'\/:*?"<>|' else c for c in f"{photo.stem} {titles.get(key, key)}"))
        number = f" {names.count(names[-1])}" if names.count(names[-1]) > 1 else ""
        data = requests.get(f"http://{SERVER}/view", params=picture).content
        Path(edited, names[-1] + number + Path(picture["filename"]).suffix).write_bytes(data)
    failed |= (bad := entry["status"]["status_str"] != "success")
    print(photo.name, entry["status"]["messages"][-1][1].get("exception_message", "interrupted") if bad else "done")
sys.exit(failed)
