"""Two addresses for the page: the words of a prompt, and a schedule before it runs. Neither needs a model.

GET /nulltext/words?text=...             {"words": ["a", "red", ...]}      as CLIP's tokenizer cuts them
GET /nulltext/schedule?kind=repaint&...  what schedules.drawing tells, or 400 {"error": one sentence}
"""

from __future__ import annotations

import asyncio
import functools
import sys
from types import SimpleNamespace

from ..engine import comfy
from ..engine.words import describe
from ..samplers.attention.alignment import normal_word
from . import schedules

LONGEST = 20_000  # characters of a prompt


@functools.cache
def _tokenizer():
    """CLIP-L's tokenizer as a CLIP object holds it; ComfyUI ships its vocabulary."""
    tokenizer = comfy.get("sd1_clip").SD1Tokenizer()
    return SimpleNamespace(
        tokenizer=tokenizer,
        tokenize=lambda text, return_word_ids=True: tokenizer.tokenize_with_weights(text, return_word_ids),
    )


def words(text: str) -> list[str]:
    """The prompt's words in order, repeats kept, in the spelling that the nodes' word fields understand."""
    found = describe(_tokenizer(), text[:LONGEST])["words"]
    return [word for word in (normal_word(entry["text"]) for entry in found) if word]


def register() -> bool:
    """Add the addresses to the server that runs in this process; False where none does."""
    place = next((name for name in ("comfy.cmd.server", "server") if name in sys.modules), None)
    server = getattr(getattr(sys.modules.get(place), "PromptServer", None), "instance", None)
    if server is None:
        return False
    from aiohttp import web

    @server.routes.get("/nulltext/words")
    async def get_words(request):
        return web.json_response({"words": await asyncio.to_thread(words, request.query.get("text", ""))})

    @server.routes.get("/nulltext/schedule")
    async def get_schedule(request):
        try:
            return web.json_response(await asyncio.to_thread(schedules.drawing, dict(request.query)))
        except ValueError as error:
            return web.json_response({"error": str(error)}, status=400)

    return True
