# SPDX-License-Identifier: MIT
"""Which requests go where, and which name the engine hears."""

import json
from dataclasses import replace

import pytest

from llmuxd.config import Upstream
from llmuxd.errors import BadRequest, LlmuxError, ModelFailed
from llmuxd.proxy import json_body, routes, shapes
from llmuxd.proxy.routes import Api, Kind

from .fake_units import a_config
from .house import ASK, CHAT, A, B, House, told

MESSAGES = "/v1/messages"


@pytest.mark.parametrize("path", [path for path, _ in routes._EXACT.items()])
async def test_each_route_reaches_the_engine_under_its_own_path(house: House, path: str) -> None:
    assert (await house.post(path=path))[0] == 200
    assert house.engine.seen[0].path == path


@pytest.mark.parametrize(
    ("path", "label"),
    [("/v1/responses/r_1", "/v1/other"), ("/v1/x/y/z", "/v1/other"), (CHAT, CHAT)],
)
def test_metrics_see_few_labels(path: str, label: str) -> None:
    assert routes.match("POST", path).label == label


@pytest.mark.parametrize(
    "path",
    [
        "/v1/../sleep", "/v1/./x", "/upstream/b/../../etc", "/v1/%2e%2e/sleep", "/v1/..%2fsleep",
        "/v1/%252e%252e/sleep", "/v1/..\\sleep", "/v1/x/..", "/v1/models/../../x",
    ],
)  # fmt: skip
async def test_path_that_leaves_its_place_is_refused(house: House, path: str) -> None:
    answered = await house.raw(
        f"POST {path} HTTP/1.1\nHost: x\nConnection: close\nContent-Length: 2\n", b"{}"
    )
    assert answered.startswith(b"HTTP/1.1 400 "), answered
    assert house.engine.seen == []


@pytest.mark.parametrize("path", ["/v1/a.b/c", "/v1/models/llama-3.2", "/v1/...", "/v1/x%20y"])
def test_dots_in_a_name_are_no_harm(path: str) -> None:
    assert routes.match("GET", path).kind in (Kind.CALL, Kind.MODEL)


async def test_absolute_target_goes_to_the_model_and_nowhere_else(house: House) -> None:
    text = json.dumps(ASK).encode()
    answered = await house.raw(
        f"POST http://evil.example:81{CHAT}?a=%20b HTTP/1.1\nHost: evil.example\n"
        f"Connection: close\nContent-Length: {len(text)}\n",
        text,
    )
    assert answered.startswith(b"HTTP/1.1 200 ")
    assert house.engine.seen[0].path == f"{CHAT}?a=%20b"
    assert house.engine.seen[0].headers["Host"] == f"127.0.0.1:{house.engine.port}"


@pytest.mark.parametrize(
    "target", ["@evil.example/v1/x", "evil.example:80", "*", "http:/v1/x", "//evil.example/v1/x"]
)
async def test_target_of_another_form_is_an_error(house: House, target: str) -> None:
    answered = await house.raw(
        f"POST {target} HTTP/1.1\nHost: x\nConnection: close\nContent-Length: 2\n", b"{}"
    )
    assert answered.split(b" ")[1] in (b"400", b"404")


# The model's name


def named(raw: bytes, name: str) -> bytes:
    return json_body.parse(raw).naming(name)


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        (b'{"model":"a"}', b'{"model":"z"}'),
        (b' { "x" : [1.10, {"model": "q"}] ,"model" : "a" , "y":"\\u00e9" } ',
         b' { "x" : [1.10, {"model": "q"}] ,"model" : "z" , "y":"\\u00e9" } '),
        ('{"é": "ü", "model": "a", "ß": 1}'.encode(), '{"é": "ü", "model": "z", "ß": 1}'.encode()),
        (b'{"mo\\u0064el": "a"}', b'{"mo\\u0064el": "z"}'),
        (b"{}", b'{"model": "z"}'),
        (b'\xef\xbb\xbf{"model":"a"}', b'{"model":"z"}'),
        (b"\xef\xbb\xbf{}", b'{"model": "z"}'),
        (b'{ "n": 1}', b'{ "model": "z", "n": 1}'),
        (b'{"model": null, "n": 1}', b'{"model": "z", "n": 1}'),
        (b'{"model": "a", "n": 12345678901234567890}',
         b'{"model": "z", "n": 12345678901234567890}'),
    ],
)  # fmt: skip
def test_name_is_replaced_and_nothing_else(raw: bytes, wanted: bytes) -> None:
    assert named(raw, "z") == wanted


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a" 1}', b'{"a": 1,}', b'{"a": 1 "b": 2}', b"{,}", b'{"a": }', b"{'a': 1}", b'{"a": 1}}',
        b'{"a": 1} x', b"{a: 1}", b'{"a', b"", b" ", b"\xef\xbb\xbf", b"\xff{}",
        b'{"a":"\n"}', b"{1:2}",
    ],
)  # fmt: skip
def test_what_is_no_json_is_refused_as_json_itself_refuses_it(raw: bytes) -> None:
    with pytest.raises(ValueError):
        json.loads(raw)
    with pytest.raises(BadRequest, match="not valid JSON"):
        json_body.parse(raw)


async def test_model_named_twice_is_refused(house: House) -> None:
    for raw in (b'{"model": "org/a", "model": "b"}', b'{"model": "b", "mod\\u0065l": "b"}'):
        status, message, _, _ = told(await house.post(raw))
        assert status == 400 and "twice" in message
    assert house.stage.units.log == []


async def test_default_model_serves_who_names_none(house: House) -> None:
    house.reconfigure(default_model="first")
    assert (await house.post({"messages": []}))[0] == 200
    assert (await house.post({"model": None, "n": 1}))[0] == 200
    assert [seen.json["model"] for seen in house.engine.seen] == ["org/a", "org/a"]
    assert told(await house.post({"model": "zzz"}))[0] == 404
    assert told(await house.post({"model": 5}))[0] == 400


async def test_engine_hears_its_own_name(house: House) -> None:
    house.stage.reload(replace(A, served_name="weights"), B)
    for asked in ("org/a", "first", "weights"):
        status, _ = await house.post({"model": asked, "n": 1})
        assert status == (404 if asked == "weights" else 200)
    assert [seen.body for seen in house.engine.seen] == [b'{"model": "weights", "n": 1}'] * 2


async def test_query_names_the_model_where_there_is_no_body(house: House) -> None:
    status, _ = await house.get("/v1/responses/r_1?x=1&model=org/a")
    assert status == 200
    (seen,) = house.engine.seen
    assert (seen.method, seen.path) == ("GET", "/v1/responses/r_1?x=1&model=org/a")
    assert told(await house.get("/v1/responses/r_1"))[0] == 400


async def test_delete_passes_too(house: House) -> None:
    house.reconfigure(default_model="b")
    async with house.client.delete(house.url + "/v1/responses/r_1") as response:
        assert response.status == 200
    assert house.engine.seen[0].method == "DELETE"


# Anthropic's shape


@pytest.mark.parametrize("path", [MESSAGES, f"{MESSAGES}/count_tokens", f"{MESSAGES}/batches"])
async def test_anthropic_errors_where_its_client_asks(house: House, path: str) -> None:
    status, answer = await house.post({"model": "zzz"}, path)
    assert status == 404 and isinstance(answer, dict)
    assert answer["type"] == "error" and answer["error"]["type"] == "not_found_error"
    status, answer = await house.post(b"{", path)
    assert status == 400 and isinstance(answer, dict)
    assert answer["error"]["type"] == "invalid_request_error"


async def test_anthropic_failure_is_an_overload(house: House) -> None:
    house.stage.units.break_verb("start", "org/a")
    status, answer = await house.post(path=MESSAGES)
    assert status == 503 and isinstance(answer, dict)
    assert answer["error"]["type"] == "overloaded_error"


def test_every_error_has_a_shape_in_both_apis() -> None:
    from llmuxd import errors

    kinds = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, LlmuxError)]
    for kind in kinds:
        made = kind("what happened")
        assert "error" in shapes.error_of(Api.OPENAI, made)
        assert shapes.error_of(Api.ANTHROPIC, made)["type"] == "error"


# The engine's own pages


@pytest.mark.parametrize(
    ("path", "seen"),
    [
        ("/upstream/org/a/docs?x=1", "/docs?x=1"), ("/upstream/org%2Fa/docs", "/docs"),
        ("/upstream/first/", "/"), ("/upstream/b/a%20b/c", "/a%20b/c"),
    ],
)  # fmt: skip
async def test_pages_of_the_engine(house: House, path: str, seen: str) -> None:
    answered = await house.raw(f"GET {path} HTTP/1.1\nHost: x\nConnection: close\n")
    assert answered.startswith(b"HTTP/1.1 200 ")
    assert house.engine.seen[0].path == seen


async def test_longest_name_counts(house: House) -> None:
    house.stage.reload(A, replace(B, name="org"))
    house.stage.units.ports["org"] = house.engine.port
    await house.get("/upstream/org/a/x")
    await house.get("/upstream/org/b/x")
    assert [seen.path for seen in house.engine.seen] == ["/x", "/b/x"]


async def test_page_without_its_slash_is_sent_there(house: House) -> None:
    async with house.client.get(
        house.url + "/upstream/org/a?x=1", allow_redirects=False
    ) as response:
        assert response.status == 308
        assert response.headers["Location"] == "/upstream/org/a/?x=1"
    assert house.stage.units.log == []


async def test_pages_are_only_read_unless_allowed(house: House) -> None:
    status, message, _, _ = told(await house.post(path="/upstream/org/a/sleep"))
    assert status == 405 and "llmux.yaml" in message
    house.reconfigure(upstream=Upstream.ALL)
    assert (await house.post(b"x=1", "/upstream/org/a/sleep"))[0] == 200
    assert (house.engine.seen[0].path, house.engine.seen[0].body) == ("/sleep", b"x=1")


async def test_pages_of_no_model(house: House) -> None:
    assert told(await house.get("/upstream/org/b/docs"))[0] == 404


def test_a_config_knows_names_and_aliases() -> None:
    config = a_config(A, B)
    assert config.knows("first") and config.knows("b") and not config.knows("a")


@pytest.mark.parametrize(("wait", "told"), [(0.01, "1"), (5.0, "5"), (5.2, "6")])
def test_who_waits_as_told_does_not_come_too_soon(wait: float, told: str) -> None:
    response = shapes.response_of(Api.OPENAI, ModelFailed("it keeps failing", retry_after=wait))
    assert response.headers["Retry-After"] == told
