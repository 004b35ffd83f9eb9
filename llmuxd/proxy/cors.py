# SPDX-License-Identifier: MIT
"""Pages of other origins in browsers (https://fetch.spec.whatwg.org/#http-cors-protocol).

`cors_origins` in llmux.yaml names those that may ask. What an engine says of it never passes: vLLM
allows all.
"""

from aiohttp import hdrs, web

from ..config import ANY_ORIGIN, Config
from ..errors import OriginForbidden

# What a page may read beside the plain ones.
_EXPOSED = ", ".join(
    ("Retry-After", "X-LLMux-Model", "X-LLMux-Activation", "X-LLMux-Queue-Seconds",
     "X-LLMux-Switch-Seconds")
)  # fmt: skip
# Seconds that a browser remembers the answer to a preflight; Chrome's most is 7200.
_REMEMBERED = "3600"
# The types of content that a page may send to any host, as any form did before there was CORS.
_UNASKED = ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data")
# From where browsers say that a request is (https://www.w3.org/TR/fetch-metadata/), to loopback and
# by https.
FETCH_SITE = "Sec-Fetch-Site"
_ELSEWHERE = ("cross-site", "same-site")


def granted(request: web.BaseRequest, config: Config) -> dict[str, str]:
    """The headers that let the request's page read the answer; empty where it may not."""
    if not config.cors_origins:
        return {}
    origin = request.headers.get(hdrs.ORIGIN, "")
    if ANY_ORIGIN in config.cors_origins:
        origin = ANY_ORIGIN if origin else ""
    elif origin not in config.cors_origins:
        origin = ""
    # A cache must not give one page's answer to another.
    told: dict[str, str] = {} if origin == ANY_ORIGIN else {hdrs.VARY: hdrs.ORIGIN}
    if origin:
        told[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
        told[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = _EXPOSED
    return told


def check_blind(request: web.BaseRequest, config: Config) -> None:
    """OriginForbidden where a page of another origin sends what browsers let it send unasked: it
    may not read the answer, but a model would come in for it.

    Whatever has another type of content, JSON say, a browser asks about before (`preflight`); so
    who sends that is none, or was told that it may.
    """
    kind = request.headers.get(hdrs.CONTENT_TYPE, "").partition(";")[0].strip().lower()
    if kind and kind not in _UNASKED:
        return
    if hdrs.ORIGIN in request.headers:
        check_page(request, config)
    elif request.headers.get(FETCH_SITE) in _ELSEWHERE and _is_part_of_a_page(request):
        raise OriginForbidden("pages of other sites may not ask")


def _is_part_of_a_page(request: web.BaseRequest) -> bool:
    """A picture or a script of it, say; a link that a user follows is none."""
    return request.headers.get("Sec-Fetch-Mode") == "no-cors"


def check_page(request: web.BaseRequest, config: Config) -> None:
    """OriginForbidden where it is of another origin. Of a WebSocket no browser asks before whether
    it may, nor keeps from the page what it hears. Who is no browser tells no origin."""
    origin = request.headers.get(hdrs.ORIGIN)
    if origin is None or ANY_ORIGIN in config.cors_origins or origin in config.cors_origins:
        return
    site = origin.partition("://")[2].lower()
    if not site or site != request.headers.get(hdrs.HOST, "").lower():
        raise OriginForbidden("pages of this origin may not ask")


def preflight(request: web.BaseRequest, config: Config) -> web.Response | None:
    """The answer to a browser that asks whether it may ask, which it does without a key; None
    where the request is none of these."""
    if request.method != hdrs.METH_OPTIONS:
        return None
    method = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_METHOD)
    wanted = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS, "")
    if method is None or not config.cors_origins or not (method + wanted).isascii():
        return None
    answer = web.Response(status=204)
    if hdrs.ACCESS_CONTROL_ALLOW_ORIGIN in granted(request, config):
        answer.headers[hdrs.ACCESS_CONTROL_ALLOW_METHODS] = method
        answer.headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = wanted
        answer.headers[hdrs.ACCESS_CONTROL_MAX_AGE] = _REMEMBERED
    return answer
