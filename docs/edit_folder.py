"""Edits every picture of a folder through a running ComfyUI; docs/api.md shows how to call it."""

import json
import os
import sys
import uuid
from pathlib import Path

import requests
import websocket

SERVER, KINDS = os.environ.get("COMFYUI_SERVER", "127.0.0.1:8188"), (".png", ".jpg", ".jpeg", ".webp")
file, photos, edited, *settings = sys.argv[1:]
Path(edited).mkdir(parents=True, exist_ok=True)
workflow = json.loads(Path(file).read_text(encoding="utf-8"))
by_title = {n.get("_meta", {}).get("title"): n for n in workflow.values()}
for setting in settings:  # "title of the node.name of its input=value"
    place, value = setting.split("=", 1)
    title, name = place.rsplit(".", 1)
    by_title[title]["inputs"][name] = value
loader = next(n for n in workflow.values() if n["class_type"] in ("NullText_LoadPicture", "LoadImage"))
client = uuid.uuid4().hex
socket = websocket.create_connection(f"ws://{SERVER}/ws?clientId={client}")
for photo in sorted(path for path in Path(photos).iterdir() if path.suffix.lower() in KINDS):
    with photo.open("rb") as opened:
        uploaded = requests.post(f"http://{SERVER}/upload/image", files={"image": opened}).json()
    loader["inputs"]["image"] = uploaded["name"]
    answer = requests.post(f"http://{SERVER}/prompt", json={"prompt": workflow, "client_id": client}).json()
    if answer.get("error"):
        sys.exit(f"{photo.name} was refused: {json.dumps(answer['node_errors'] or answer['error'])}")
    entry = {}
    while not entry:  # the server says on the socket when something happened; the history has the result
        socket.recv()
        entry = requests.get(f"http://{SERVER}/history/{answer['prompt_id']}").json().get(answer["prompt_id"], {})
    for key, output in entry["outputs"].items():
        for picture in output.get("images", ()):
            title = workflow[key].get("_meta", {}).get("title", key)
            data = requests.get(f"http://{SERVER}/view", params=picture).content
            Path(edited, f"{photo.stem} {title}.png").write_bytes(data)
    print(photo.name, "done" if entry["status"]["status_str"] == "success" else entry["status"]["messages"][-1])
