"""Who reads a node's outputs in the prompt that runs now, so that a node makes no result that nobody takes."""

from __future__ import annotations

from .comfy import get


def _running() -> list[tuple[str, dict]]:
    """(id, prompt as it was queued) of what the engine is running; none where there is no server."""
    try:
        items = get("server").PromptServer.instance.prompt_queue.currently_running.values()
        queued = [getattr(item, "queue_tuple", item) for item in list(items)]
        return [(str(item[1]), item[2]) for item in queued if isinstance(item[2], dict)]
    except (ImportError, AttributeError, IndexError, TypeError):
        return []


def running_job() -> str | None:
    """The id of the prompt that runs; None without a server, or where several run."""
    found = _running()
    return found[0][0] if len(found) == 1 else None


def readers(node_id: str | None) -> set[int] | None:
    """The outputs of a node, counted from 0, that another node of the running prompt is wired to.

    None where the engine does not tell: a node that was made while the prompt ran, or a call without a server."""
    for _, prompt in _running():
        if node_id is not None and str(node_id) in prompt:
            links = [value for node in prompt.values() for value in node.get("inputs", {}).values()]
            links = [link for link in links if isinstance(link, list | tuple) and len(link) == 2]
            return {int(slot) for key, slot in links if str(key) == str(node_id)}
    return None
