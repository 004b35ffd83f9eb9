# SPDX-License-Identifier: MIT
"""What a request's method and target mean."""

from dataclasses import dataclass
from enum import Enum
from urllib.parse import unquote

from ..errors import BadRequest, MethodNotAllowed, NoSuchRoute


class Api(Enum):
    """Whose shapes the answer has; it decides what an error looks like."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"


class Kind(Enum):
    """Who answers."""

    HEALTH = "health"
    METRICS = "metrics"
    MODELS = "models"
    MODEL = "model"
    CALL = "call"
    REALTIME = "realtime"
    UPSTREAM = "upstream"


@dataclass(frozen=True, slots=True)
class Route:
    """`label` is what metrics call it: one of few. `rest` is what follows a prefix, decoded
    for `MODEL` and as it was sent for `UPSTREAM`."""

    kind: Kind
    label: str
    api: Api = Api.OPENAI
    rest: str = ""


# POST only, each with the model in the body. The first group is OpenAI's, the second Anthropic's,
# the others are vLLM's and llama-server's own.
_CALLS = (
    *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"),
    *("/v1/moderations", "/v1/audio/speech", "/v1/audio/transcriptions"),
    *("/v1/audio/translations", "/v1/images/generations", "/v1/images/edits"),
    "/v1/images/variations",
    *("/v1/messages", "/v1/messages/count_tokens"),
    *("/v1/rerank", "/v2/rerank", "/rerank", "/v1/reranking", "/reranking"),
    *("/v1/score", "/score", "/classify", "/pooling"),
    *("/tokenize", "/detokenize", "/apply-template"),
    *("/completion", "/infill", "/embedding"),
)

_EXACT = {
    path: Route(
        Kind.CALL,
        path,
        Api.ANTHROPIC if path.startswith("/v1/messages") else Api.OPENAI,
    )
    for path in _CALLS
}
_REALTIME = Route(Kind.REALTIME, "/v1/realtime")
_READS = {
    "/health": Route(Kind.HEALTH, "/health"),
    "/metrics": Route(Kind.METRICS, "/metrics"),
    "/v1/models": Route(Kind.MODELS, "/v1/models"),
}
_MODEL = "/v1/models/"
_UPSTREAM = "/upstream/"
_V1 = "/v1/"

READING = ("GET", "HEAD")
# What streams here is no text.
SOUNDS = ("/v1/audio/speech",)


def match(method: str, path: str) -> Route:
    """The route of `path`, which is as it was sent, without its query.

    NoSuchRoute, MethodNotAllowed, or BadRequest for a path that leaves its place.
    """
    route = _EXACT.get(path)
    if route is not None:
        if method != "POST":
            raise MethodNotAllowed(f"{path} takes POST, not {method}")
        return route
    if _leaves(path):
        raise BadRequest("the request's path has . or .. in it")
    route = _READS.get(path)
    if route is None and path.startswith(_MODEL) and len(path) > len(_MODEL):
        route = Route(Kind.MODEL, "/v1/models/{model}", rest=unquote(path[len(_MODEL) :]))
    if route is not None:
        if method not in READING:
            raise MethodNotAllowed(f"{path} takes GET, not {method}")
        return route
    if path == _REALTIME.label:
        return _REALTIME
    if path.startswith(_UPSTREAM) and len(path) > len(_UPSTREAM):
        return Route(Kind.UPSTREAM, "/upstream", rest=path[len(_UPSTREAM) :])
    if path.startswith(_V1) and len(path) > len(_V1):
        # What engines offer beyond the list: GET /v1/responses/ID, say.
        api = Api.ANTHROPIC if path.startswith("/v1/messages/") else Api.OPENAI
        return Route(Kind.CALL, "/v1/other", api)
    raise NoSuchRoute(f"there is no {path}")


def api_of(path: str) -> Api:
    """Whose client asks, where the route itself is in doubt."""
    return Api.ANTHROPIC if path.startswith("/v1/messages") else Api.OPENAI


def _leaves(path: str) -> bool:
    """Whether a server that resolves dot segments would read another path."""
    if "." not in path and "%2" not in path:
        return False
    # Twice, and backslashes too: some servers decode before they split.
    parts = unquote(unquote(path)).replace("\\", "/").split("/")
    return "." in parts or ".." in parts
