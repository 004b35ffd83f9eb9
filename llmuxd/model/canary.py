# SPDX-License-Identifier: MIT
"""One question whose answer proves that a server came back as it was.

By default one token of a fixed prompt, the likeliest: the same before and after for as long as the
weights and the engine are sound. An answer takes milliseconds; a GPU's first after a restore, a
second. A model may have a question of its own instead.
"""

import http
import json
import math
from typing import Any

from .. import loggers
from ..config import Engine, ModelConfig, Question
from .activation import Activation
from .server import WrongAnswer, ask, fetch

log = loggers.named("llmux-model")

_ENGINES = (Engine.VLLM, Engine.LLAMA_SERVER)
# What servers tell beside the answer, and tell anew each time.
_PASSING = frozenset(
    {
        "id", "request_id", "id_slot", "created", "created_at", "timestamp", "timings", "metrics",
        "usage", "seed", "generation_settings", "tokens_cached", "tokens_evaluated",
        "system_fingerprint",
    }
)  # fmt: skip
_PASSING_ENDS = ("_duration", "_ms", "_seconds")
# Threads add up in another order each time; weights that are damaged are wrong by more.
_RELATIVE, _ABSOLUTE = 1e-2, 1e-3
# Of a long list, an embedding say, so much is as good as all of it; and the record stays small.
_KEPT = 64
_KEPT_TEXT = 4096


def is_asked(model: ModelConfig) -> bool:
    """Whether the model's server is to be asked its canary."""
    if isinstance(model.canary, Question):
        return True
    return model.canary and model.engine in _ENGINES


def question_of(model: ModelConfig) -> Question | None:
    """The model's own question; None where it is the usual one."""
    return model.canary if isinstance(model.canary, Question) else None


def ask_canary(port: int, prompt: str, question: Question | None = None) -> str:
    """What the server answers now, as JSON: to the question, else to the prompt.

    Empty where it has no such API: it refuses by a status from 400 on. WrongAnswer where it fails
    (500 on), or does not answer at all.
    """
    return _answer_of(port, question) if question else _first_token(port, prompt)


def of_run(run: Activation) -> str:
    """What the server of this run answers now; empty where it is not to be asked."""
    return ask_canary(run.port, run.canary_prompt, run.question) if run.canary else ""


def agree(before: str, now: str) -> bool:
    """Whether two answers of `ask_canary` are the same, but for the last digits of fractions."""
    if before == now:
        return True
    try:
        return _close(json.loads(before), json.loads(now))
    except ValueError:
        return False


def _first_token(port: int, prompt: str) -> str:
    status, models = ask(port, "GET", "/v1/models")
    if not _is_taken(status, "/v1/models"):
        return ""
    served = models.get("data")
    if not served:
        return ""
    try:
        name = served[0]["id"]
    except (KeyError, IndexError, TypeError):
        raise WrongAnswer("it does not say what it calls its model") from None
    body = {"model": name, "prompt": prompt, "max_tokens": 1, "temperature": 0}
    status, answer = ask(port, "POST", "/v1/completions", body)
    if not _is_taken(status, "/v1/completions"):
        return ""
    try:
        return json.dumps({"text": answer["choices"][0]["text"]})
    except (KeyError, IndexError, TypeError):
        raise WrongAnswer("it answers its canary with what is no completion") from None


def _is_taken(status: int, path: str) -> bool:
    """Whether the server has done what its canary asks; WrongAnswer where it fails at that."""
    if status >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
        raise WrongAnswer(f"it answers its canary with status {status}: {path}")
    if status in (http.HTTPStatus.UNAUTHORIZED, http.HTTPStatus.FORBIDDEN):
        log.warning("it wants a key for %s (status %d): nothing will prove that it comes back as"
                    " it was", path, status)  # fmt: skip
    return status == http.HTTPStatus.OK


def _answer_of(port: int, question: Question) -> str:
    method = "POST" if question.body else "GET"
    status, raw = fetch(port, method, question.path, question.body or None)
    if status >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
        raise WrongAnswer(f"it answers its canary with status {status}")
    if status != http.HTTPStatus.OK:
        log.warning("its canary, %s, is refused with status %d", question.path, status)
        return ""
    text = raw.decode(errors="replace")
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    return json.dumps(_lasting(value), sort_keys=True)


def _lasting(value: Any) -> Any:
    """The value without what is another each time, and no more of it than is worth keeping."""
    match value:
        case dict():
            return {
                key: _lasting(each)
                for key, each in value.items()
                if key not in _PASSING and not key.endswith(_PASSING_ENDS)
            }
        case list():
            return [_lasting(each) for each in value[:_KEPT]]
        case str():
            return value[:_KEPT_TEXT]
        case _:
            return value


def _close(one: Any, other: Any) -> bool:
    match one, other:
        case dict(), dict():
            return one.keys() == other.keys() and all(_close(one[key], other[key]) for key in one)
        case list(), list():
            return len(one) == len(other) and all(map(_close, one, other))
        case (bool(), _) | (_, bool()):
            return one is other
        case (float(), float() | int()) | (int(), float()):
            return math.isclose(one, other, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE)
        case _:
            return bool(one == other)
