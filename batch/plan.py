"""What is to be done: a workflow and a table become rows, each with a name that follows from all that enters it.

Columns name inputs by the node's title or class and the input: `Source picture.image`, `Edited prompt.text`. Two more
have a meaning of their own: `key` names the row's results, `timeout` is how many seconds it may take.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .pictures import File, Pictures
from .store import plain
from .table import Line

KEY, TIMEOUT = "key", "timeout"
MARK = 16  # letters of a row's id in its files' names
Workflow = dict[str, dict[str, Any]]


class PlanError(ValueError):
    """What makes the whole command wrong; one line for each finding."""


@dataclass
class Problem:
    """A row of the table that can't be run, and why."""

    row: int
    key: str
    error: str


@dataclass
class Plan:
    """Rows as JSON texts in the table's order: {"row", "key", "id", "set": [[node, input, value]], "files", "timeout"},
    and the rows that can't be run."""

    workflow: Workflow
    files: list[File]  # what every row needs on the server
    rows: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def load(path: str) -> Workflow:
    """A workflow in API format. PlanError if the file is none."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PlanError(f"{path} can't be read as a workflow: {error}") from None
    if not isinstance(found, dict) or not all(
        isinstance(n, dict) and "class_type" in n and isinstance(n.get("inputs"), dict) for n in found.values()
    ):
        raise PlanError(f"{path} is no workflow in API format: in ComfyUI choose Workflow, Export (API).")
    return found


def title(node: dict[str, Any]) -> str:
    """What a person calls a node: its title, else its class."""
    return node.get("_meta", {}).get("title") or node["class_type"]


def _kind(node: dict[str, Any], name: str) -> str:
    """What an input's value is: "picture", "folder" or "value"."""
    if node["class_type"].startswith(("LoadImage", "NullText_LoadPicture")) and name == "image":
        return "picture"
    return "folder" if node["class_type"].startswith("NullText_") and name == "folder" else "value"


def picture_column(workflow: Workflow) -> str | None:
    """The column of the only picture that the workflow loads; None if it loads none or several."""
    found = [node for node in workflow.values() if _kind(node, "image") == "picture"]
    return f"{title(found[0])}.image" if len(found) == 1 else None


def words_column(workflow: Workflow, which: str) -> str:
    """The column of the "source" or the "edited" prompt: the text of the node of that title, else the input of that
    name of a node that takes both."""
    said = f"{which.capitalize()} prompt"
    if any(title(node) == said for node in workflow.values()):
        return f"{said}.text"
    name = f"{which}_prompt"
    found = [title(node) for node in workflow.values() if isinstance(node["inputs"].get(name), str)]
    return f"{found[0] if len(found) == 1 else said}.{name if len(found) == 1 else 'text'}"


def target(workflow: Workflow, column: str) -> tuple[str, str]:
    """(node id, input) that a column names. ValueError says what there is instead."""
    named, dot, name = column.rpartition(".")
    found = [key for key, node in workflow.items() if title(node) == named]
    found = found or [key for key, node in workflow.items() if node["class_type"] == named]
    if not dot or not found:
        known = ", ".join(sorted({title(node) for node in workflow.values()}))
        raise ValueError(f"Column {column!r} names no node; write TITLE.INPUT with one of these titles: {known}.")
    if len(found) > 1:
        raise ValueError(f"Column {column!r} names {len(found)} nodes: give the one you mean a title of its own.")
    inputs = workflow[found[0]]["inputs"]
    if name not in inputs or _linked(inputs[name], workflow):
        free = ", ".join(key for key, value in inputs.items() if not _linked(value, workflow)) or "none"
        raise ValueError(f"Column {column!r}: {named} has no input {name!r} to set; it has: {free}.")
    return found[0], name


def _linked(value: Any, workflow: Workflow) -> bool:
    return isinstance(value, list) and len(value) == 2 and str(value[0]) in workflow


def upstream(workflow: Workflow, keys: Iterable[str]) -> Workflow:
    """These nodes and all that they depend on."""
    found, waiting = {}, list(keys)
    while waiting:
        key = waiting.pop()
        if key in workflow and key not in found:
            found[key] = workflow[key]
            waiting += [str(value[0]) for value in found[key]["inputs"].values() if _linked(value, workflow)]
    return found


def _cast(value: Any, like: Any, column: str) -> Any:
    """A cell's value in the type that the workflow has there."""
    if isinstance(like, bool):
        known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if str(value).strip().lower() not in known:
            raise ValueError(f"{column} is {_brief(value)}: write true or false.")
        return known[str(value).strip().lower()]
    if isinstance(like, int | float):
        whole = isinstance(like, int)
        try:
            return type(like)(int(str(value).strip()))  # a seed keeps its last digit
        except ValueError:
            pass
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number) or (whole and not number.is_integer()):
            raise ValueError(f"{column} is {_brief(value)}: write a {'whole ' if whole else ''}number.")
        return int(number) if whole else number
    return value if isinstance(value, str | list | dict) else str(value)


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else text[:57] + "..."


def bare(workflow: Workflow) -> Workflow:
    """Without titles and notes: what the server computes."""
    return {key: {"class_type": n["class_type"], "inputs": dict(n["inputs"])} for key, n in workflow.items()}


def _own_pictures(workflow: Workflow, columns: set, places: list[Pictures]) -> tuple[list[File], list[str]]:
    """Set the pictures that the workflow itself names; (files to upload, sentences about the missing ones)."""
    files: list[File] = []
    missing: list[str] = []
    for key, node in workflow.items():
        for name, value in node["inputs"].items():
            kind = _kind(node, name)
            if kind == "value" or not value or (key, name) in columns or not isinstance(value, str):
                continue
            if value.rstrip().endswith("]"):  # "name [sample]", "name [output]": the server has it
                continue
            for place in places:
                try:
                    if kind == "picture":
                        node["inputs"][name], file = place.picture(value)
                        files.append(file)
                    else:
                        node["inputs"][name], more = place.folder(value)
                        files += more
                    break
                except (ValueError, OSError):
                    continue
            else:
                missing.append(f"The workflow's own {kind} {value!r} ({title(node)}) is not there: give it a column.")
    return files, missing


def make(
    workflow: Workflow,
    lines: Iterable[Line],
    pictures: Pictures,
    own: list[Pictures],
    constants: dict[str, str] | None = None,
    own_needed: bool = True,
) -> Plan:
    """The plan of a table. `pictures`: where its paths start; `own`: where the workflow's own pictures may lie;
    `constants`: columns that every row has.

    PlanError tells at once all that is wrong with columns and with the workflow's own pictures (if `own_needed`)."""
    lines, constants = list(lines), constants or {}
    columns = {column for line in lines for column in line.values if isinstance(column, str)} - {KEY, TIMEOUT}
    targets, wrong = {}, []
    for column in sorted(columns | set(constants)):
        try:
            targets[column] = target(workflow, column)
        except ValueError as error:
            wrong.append(str(error))
    base = bare(workflow)
    named = {key: {**node, **({"_meta": m} if (m := workflow[key].get("_meta")) else {})} for key, node in base.items()}
    files, missing = _own_pictures(named, set(targets.values()), own)
    if wrong or (missing and own_needed):
        raise PlanError("\n".join(wrong + (missing if own_needed else [])))
    plan = Plan(named, files)
    start = hashlib.sha256(json.dumps(bare(named), sort_keys=True).encode())
    seen: dict[str, int] = {}
    for line in lines:
        key = _key(line.values)
        try:
            if line.problem:
                raise ValueError(line.problem)
            row = _row(line, {**constants, **line.values}, targets, named, pictures, start.copy())
        except (ValueError, OSError) as error:
            plan.problems.append(Problem(line.number, key, str(error)))
            continue
        if (first := seen.setdefault(row["key"], line.number)) != line.number:
            what = f"has the key {_brief(key)} of" if key else "is the same as"
            sentence = f"The row {what} row {first}: give every row a key of its own."
            plan.problems.append(Problem(line.number, key, sentence))
            continue
        plan.rows.append(json.dumps(row))
    return plan


def _key(values: dict) -> str:
    key = values.get(KEY)
    return "" if key is None else str(key).strip()


def _row(line: Line, values: dict, targets: dict, workflow: Workflow, pictures: Pictures, digest) -> dict[str, Any]:
    for column, value in values.items():
        try:
            json.dumps(value, ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"{column} is {_brief(value)}, with half an emoji that no file can hold: mend it."
            ) from None
    sets, files, named = [], [], ""
    for column, value in sorted(values.items()):
        if column in (KEY, TIMEOUT) or value is None:
            continue
        key, name = targets[column]
        like, kind = workflow[key]["inputs"][name], _kind(workflow[key], name)
        if kind == "value":
            if value == "" and not isinstance(like, str):
                continue
            sets.append([key, name, _cast(value, like, column)])
            continue
        if not str(value).strip():
            raise ValueError(f"{column} is empty: name a {kind}.")
        found, more = getattr(pictures, kind)(str(value).strip())
        named = named or plain(found.rpartition("-")[0])
        sets.append([key, name, found])
        files += [more] if kind == "picture" else more
    key = _key(values)
    if len(key) > 200:
        raise ValueError(f"The key has {len(key)} letters: 200 are the most.")
    seconds = values.get(TIMEOUT)
    try:
        timeout = None if seconds in (None, "") else float(seconds)
    except (TypeError, ValueError):
        raise ValueError(f"timeout is {_brief(seconds)}: write a number of seconds.") from None
    if timeout is not None and not 0 < timeout < 10**7:
        raise ValueError(f"timeout is {timeout:g}: write a positive number of seconds.")
    digest.update(json.dumps([key, sets], sort_keys=True).encode())
    name = digest.hexdigest()[:32]
    key = key or f"{named or 'row'}-{name[:MARK]}"
    return {"row": line.number, "key": key, "id": name, "set": sets, "files": files, "timeout": timeout}
