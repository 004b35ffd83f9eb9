# SPDX-License-Identifier: MIT
"""python3 -m tests.bench.behind_litellm: llmuxd behind litellm's proxy, asked by OpenAI's SDK.

litellm is too much to install for each `make check`, so this is by hand; the bench installs it all
the same. Exit status 0 only if each answer, and each class of error, is what llmuxd meant.
"""

import asyncio
import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path

from aiohttp import web

from llmuxd.keys import Key
from tests.unit.house import a_house

from . import contenders

# In litellm's own environment, which has the SDK.
_CLIENT = """\
import openai, sys
client = openai.OpenAI(base_url=sys.argv[1], api_key="x", max_retries=0)
ask = {"messages": [{"role": "user", "content": "Hello"}]}
print("answer", client.chat.completions.create(model="good", **ask).usage.total_tokens)
stream = client.chat.completions.create(model="good", stream=True, **ask)
print("stream", sum(bool(c.choices and c.choices[0].delta.content) for c in stream))
for model in ("unknown", "limited", "limited", "stranger", "forbidden", "failing"):
    try:
        client.chat.completions.create(model=model, **ask)
        print(model, "served")
    except openai.APIStatusError as error:
        print(model, type(error).__name__, error.status_code)
"""
_WANTED = """\
answer 16
stream 5
unknown NotFoundError 404
limited served
limited RateLimitError 429
stranger AuthenticationError 401
forbidden PermissionDeniedError 403
failing InternalServerError 503
"""
# What litellm calls it: the model, and the key that it sends.
_MODELS = {
    "good": ("first", "all"),
    "unknown": ("org/aa", "all"),
    "limited": ("org/a", "one"),
    "stranger": ("org/a", "none"),
    "forbidden": ("org/a", "other"),
    "failing": ("b", "all"),
}


async def main(scratch: Path) -> int:
    async with a_house() as house:
        house.engine.answer = _answer
        house.stage.units.break_verb("start", "b")
        house.proxy.take_keys(
            [_key("all"), _key("one", per_minute=1), _key("other", models=frozenset({"b"}))]
        )
        python = contenders.install_litellm().with_name("python")
        # It asks for nothing as it starts, so that the loop may wait for it.
        with contenders.litellm_of(scratch, f"{house.url}/v1", _MODELS) as proxy:
            url = f"http://127.0.0.1:{proxy.port}/v1"
            client = await asyncio.create_subprocess_exec(
                str(python), "-c", _CLIENT, url, stdout=asyncio.subprocess.PIPE
            )
            said, _ = await client.communicate()
    print(said.decode(), end="")
    return 0 if said.decode() == _WANTED else 1


async def _answer(request: web.Request) -> web.StreamResponse:
    if not (await request.json()).get("stream"):
        return web.json_response(text=contenders.ANSWER)
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for _ in range(5):
        choice = {"index": 0, "delta": {"role": "assistant", "content": " word"}}
        chunk = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        await response.write(f"data: {json.dumps(chunk | {'choices': [choice]})}\n\n".encode())
    await response.write(b"data: [DONE]\n\n")
    return response


def _key(secret: str, per_minute: int = 0, models: frozenset[str] | None = None) -> Key:
    digest = hashlib.sha256(secret.encode()).digest()
    return Key(secret, digest, models, requests_per_minute=per_minute)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        os.environ |= {"STATE_DIRECTORY": scratch, "RUNTIME_DIRECTORY": scratch}
        sys.exit(asyncio.run(main(Path(scratch))))
