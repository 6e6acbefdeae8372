"""What a node says under itself: text that both front ends get with the node's result."""

from __future__ import annotations

import logging


def text_result(text: str, *outputs) -> dict:
    """A node's return value that shows `text` in the node; the log gets its first line."""
    logging.getLogger("nulltext").info(text.splitlines()[0] if text else "")
    return {"ui": {"text": [text]}, "result": outputs}
