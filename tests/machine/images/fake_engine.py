#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""An OpenAI-compatible server without a model, that behaves or misbehaves as it is told.

What it does is a Behaviour. Each field can be set by an argument (--start-delay 3), by the
environment (FAKE_START_DELAY=3), for all later requests by POST /control {"start_delay": 3}, and
for one request by its body's key "fake": {"seconds_per_token": 0.5}.

GET /counter tells what happened so far, from memory only: it survives a checkpoint, not a restart.
"""

import argparse
import hashlib
import json
import os
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

WORDS = "amber birch cedar delta ember fjord grove heron inlet jetty kelp larch maple north otter"
DIED = 13  # the exit status of a server that was told to die
Json = dict[str, Any]


@dataclass(frozen=True)
class Behaviour:
    start_delay: float = 0.0  # seconds from the start until it is healthy
    unhealthy: bool = False  # /health says 503
    seconds_per_token: float = 0.0
    tokens: int = 0  # in an answer; 0: as many as the request's max_tokens
    memory_mb: int = 0  # held and filled, so that a checkpoint has something to carry
    status: int = 0  # answer with this HTTP status instead
    wrong: bool = False  # answer another text than the right one
    never: bool = False  # take the request and never answer
    die: bool = False  # exit at once
    die_after: int = 0  # exit after this many tokens of an answer
    # Seconds to the first token after it slept at that level, instead of seconds_per_token
    first_after_1: float = 0.0
    first_after_2: float = 0.0
    wrong_after: int = 0  # answer another text once it has slept at this level

    def changed(self, values: Json) -> "Behaviour":
        """With these fields of another value; the types are those of the fields."""
        for name, value in values.items():
            if not hasattr(self, name):
                raise ValueError(f"no such behaviour: {name}")
            if isinstance(value, bool) != isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}: {value!r} is of another type")
        return replace(self, **values)


class Engine:
    def __init__(self, model: str, behaviour: Behaviour) -> None:
        self.model = model
        self.instance = uuid.uuid4().hex
        self.asleep = False
        self.slept: list[int] = []  # the level of each sleep
        self._first: float | None = None  # seconds to the next answer's first token
        self._started = time.monotonic()
        self._lock = threading.Lock()
        self._counts = {"counter": 0, "running": 0, "most_running": 0, "cancelled": 0}
        self._memory: list[bytes] = []
        self.behaviour = behaviour
        self.behave({})

    def behave(self, values: Json) -> None:
        self.behaviour = self.behaviour.changed(values)
        # One random block a MiB: pages of equal content may be stored once.
        missing = self.behaviour.memory_mb - len(self._memory)
        self._memory += [os.urandom(1 << 20) for _ in range(missing)]
        del self._memory[self.behaviour.memory_mb :]
        if self.behaviour.die:
            os._exit(DIED)

    def sleep(self, level: int) -> None:
        self.asleep = level > 0
        self.slept.append(level)

    def wake_up(self) -> None:
        """Awake, but what it lets pass for it may take its time, or be noise."""
        if self.asleep:
            one, two = self.behaviour.first_after_1, self.behaviour.first_after_2
            self._first = one if self.slept[-1] == 1 else two
            if self.behaviour.wrong_after == self.slept[-1]:
                self.behave({"wrong": True})
        self.asleep = False

    def healthy(self) -> bool:
        ready = time.monotonic() - self._started >= self.behaviour.start_delay
        return ready and not self.behaviour.unhealthy

    def report(self) -> Json:
        digest = hashlib.sha256()
        for block in self._memory:
            digest.update(block)
        with self._lock:
            counts = dict(self._counts)
        return {
            **counts,
            "instance": self.instance,
            "asleep": self.asleep,
            "slept": self.slept,
            "memory_mb": len(self._memory),
            "memory_sha256": digest.hexdigest(),
        }

    @contextmanager
    def request(self) -> Iterator[int]:
        """Counts a request while it runs; its number."""
        with self._lock:
            self._counts["counter"] += 1
            self._counts["running"] += 1
            running = self._counts["running"]
            self._counts["most_running"] = max(running, self._counts["most_running"])
            number = self._counts["counter"]
        try:
            yield number
        finally:
            with self._lock:
                self._counts["running"] -= 1

    def cancelled(self) -> None:
        with self._lock:
            self._counts["cancelled"] += 1

    def tokens(self, prompt: str, wanted: int, how: Behaviour) -> Iterator[str]:
        """The answer, always the same for one model and prompt."""
        words = WORDS.split()
        seed = f"{self.model}\n{prompt}\n{'wrong' if how.wrong else ''}"
        first, self._first = self._first, None
        for number in range(how.tokens or wanted):
            pause = how.seconds_per_token if number or first is None else first
            time.sleep(pause)
            if how.die_after and number == how.die_after:
                os._exit(DIED)
            digest = hashlib.sha256(f"{seed}\n{number}".encode()).digest()
            yield f" {words[digest[0] % len(words)]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: "Server"

    def do_GET(self) -> None:
        engine = self.server.engine
        match urlsplit(self.path).path:
            case "/health" if engine.healthy():
                self._json({"status": "ok"})
            case "/health":
                self._error(503, "not healthy")
            case "/v1/models":
                self._json({"object": "list", "data": [{"id": engine.model, "object": "model"}]})
            case "/counter":
                self._json(engine.report())
            case "/control":
                self._json(asdict(engine.behaviour))
            case "/is_sleeping":
                self._json({"is_sleeping": engine.asleep})
            case path:
                self._error(404, f"no such path: {path}")

    def do_POST(self) -> None:
        try:
            text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = json.loads(text or "{}")
            self._post(urlsplit(self.path).path, body)
        except ValueError as error:
            self._error(400, str(error))
        except ConnectionError:
            self.server.engine.cancelled()
            self.close_connection = True

    def _post(self, path: str, body: Json) -> None:
        engine = self.server.engine
        match path:
            case "/control":
                engine.behave(body)
                self._json(asdict(engine.behaviour))
            case "/v1/completions":
                self._complete(body, str(body.get("prompt", "")), chat=False)
            case "/v1/chat/completions":
                self._complete(body, json.dumps(body.get("messages", [])), chat=True)
            case "/v1/embeddings":
                self._embed(body)
            # vLLM's sleep mode
            case "/sleep":
                level = parse_qs(urlsplit(self.path).query).get("level", ["1"])[0]
                engine.sleep(int(level))
                self._json({})
            case "/wake_up":
                engine.wake_up()
                self._json({})
            case "/collective_rpc" | "/reset_prefix_cache":
                self._json({})
            case _:
                self._error(404, f"no such path: {path}")

    def _complete(self, body: Json, prompt: str, *, chat: bool) -> None:
        engine = self.server.engine
        how = engine.behaviour.changed(body.get("fake", {}))
        if how.die:
            os._exit(DIED)
        if how.never:
            threading.Event().wait()
        if how.status:
            self._error(how.status, f"told to answer {how.status}")
        elif not engine.healthy() or engine.asleep:
            self._error(503, "asleep" if engine.asleep else "not healthy")
        elif body.get("model") != engine.model:
            self._error(404, f"the model {body.get('model')!r} does not exist")
        else:
            with engine.request() as number:
                tokens = engine.tokens(prompt, int(body.get("max_tokens", 16)), how)
                answer = Answer(engine.model, number, chat)
                if body.get("stream"):
                    self._stream(answer, tokens)
                else:
                    self._json(answer.whole(prompt, list(tokens)))

    def _embed(self, body: Json) -> None:
        engine = self.server.engine
        how = engine.behaviour.changed(body.get("fake", {}))
        seed = f"{engine.model}\n{body.get('input')}\n{'wrong' if how.wrong else ''}"
        digest = hashlib.sha256(seed.encode()).digest()
        with engine.request() as number:
            self._json(
                {
                    "id": f"embd-{number}",
                    "created": int(time.time()),
                    "data": [{"index": 0, "embedding": [byte / 255 for byte in digest]}],
                }
            )

    def _stream(self, answer: "Answer", tokens: Iterator[str]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for token in tokens:
            self._event(json.dumps(answer.part(token, None)))
        self._event(json.dumps(answer.part("", "length")))
        self._event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def _event(self, data: str) -> None:
        event = f"data: {data}\n\n".encode()
        self.wfile.write(b"%x\r\n%b\r\n" % (len(event), event))

    def _error(self, status: int, message: str) -> None:
        self._json({"error": {"message": message, "type": "fake", "code": status}}, status)

    def _json(self, body: Json, status: int = 200) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@dataclass(frozen=True)
class Answer:
    """One answer in the shapes of the API."""

    model: str
    number: int
    chat: bool

    def part(self, token: str, finish: str | None) -> Json:
        text: Json = {"delta": {"content": token}} if self.chat else {"text": token}
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return self._frame(kind, {**text, "finish_reason": finish})

    def whole(self, prompt: str, tokens: list[str]) -> Json:
        said = "".join(tokens)
        message = {"role": "assistant", "content": said}
        text: Json = {"message": message} if self.chat else {"text": said}
        kind = "chat.completion" if self.chat else "text_completion"
        asked, answered = len(prompt.split()), len(tokens)
        usage = {
            "prompt_tokens": asked,
            "completion_tokens": answered,
            "total_tokens": asked + answered,
        }
        return {**self._frame(kind, {**text, "finish_reason": "length"}), "usage": usage}

    def _frame(self, kind: str, choice: Json) -> Json:
        return {
            "id": f"fake-{self.number}",
            "object": kind,
            "created": int(time.time()),
            "model": self.model,
            "choices": [{"index": 0, **choice}],
        }


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, engine: Engine) -> None:
        super().__init__(("0.0.0.0", port), Handler)
        self.engine = engine


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=os.environ.get("FAKE_MODEL", "fake"))
    parser.add_argument("--port", type=int, default=int(os.environ.get("FAKE_PORT", "8000")))
    for field in fields(Behaviour):
        flag = f"--{field.name.replace('_', '-')}"
        told = os.environ.get(f"FAKE_{field.name.upper()}", "0")
        if field.type is bool:
            parser.add_argument(flag, action="store_true", default=told not in ("", "0"))
        else:
            kind = int if field.type is int else float
            parser.add_argument(flag, type=kind, default=kind(told))
    return parser.parse_args()


def main() -> None:
    # The first process of a container gets only the signals that it handles.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))
    told = vars(_arguments())
    model, port = told.pop("model"), told.pop("port")
    server = Server(port, Engine(model, Behaviour(**told)))
    print(f"fake engine: model {model} on port {port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
