# SPDX-License-Identifier: MIT
"""A request's target, and what it says of the model."""

from collections.abc import Callable
from urllib.parse import parse_qs, quote, unquote

from aiohttp import web

from ..config import Config

# Of a name in a path, in characters: a unit's name has at most 255 bytes, and each may be quoted.
_LONGEST = 3 * 255 + 1


def of(request: web.BaseRequest) -> str:
    """Path and query, as they were sent; what an absolute URL names as its host is not asked."""
    raw = request.raw_path
    return raw if raw.startswith("/") else request.rel_url.raw_path_qs


def model(target: str) -> str:
    """What the query names as `model`; empty where it does not."""
    query = target.partition("?")[2]
    return parse_qs(query).get("model", [""])[0] if "model=" in query else ""


def naming(target: str, name: str) -> str:
    """The target with this as its query's `model`, where that is another one."""
    if model(target) in ("", name):
        return target
    path, _, query = target.partition("?")
    mine = f"model={quote(name, safe='')}"
    parts = (mine if part.startswith("model=") else part for part in query.split("&"))
    return f"{path}?{'&'.join(parts)}"


def split(rest: str, config: Config, shown_to: Callable[[str], bool]) -> tuple[str, str]:
    """The model that the path `rest` begins with, and what follows its name.

    A name may have slashes, as they are or quoted; the longest one that is known counts.
    NoSuchModel where none is, with a hint at one that is `shown_to` who asks.
    """
    ends = [place for place, letter in enumerate(rest[:_LONGEST]) if letter == "/"] + [len(rest)]
    for end in reversed(ends):
        name = unquote(rest[:end])
        if config.knows(name):
            return config.resolve(name), rest[end:]
    return config.resolve(unquote(rest), shown_to), ""
