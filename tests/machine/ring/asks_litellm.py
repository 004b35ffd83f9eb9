# SPDX-License-Identifier: MIT
"""litellm as a client of llmuxd, in a process of its own: what it imports and leaves open warns.

`python3 asks_litellm.py MODEL`; what it saw is one line of JSON.
"""

import asyncio
import json
import os
import sys
from typing import Any

# It would fetch a list of prices otherwise.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm

ASKED: dict[str, Any] = {
    "api_base": "http://127.0.0.1:4000/v1",
    "api_key": "none",
    "messages": [{"role": "user", "content": "Say hello."}],
    "max_tokens": 5,
    "max_retries": 0,
}


async def ask_without_blocking(model: str) -> str:
    answer = await litellm.acompletion(model=f"openai/{model}", **ASKED)
    return str(answer.choices[0].message.content)


def main(model: str) -> None:
    answer = litellm.completion(model=f"openai/{model}", **ASKED)
    stream = litellm.completion(model=f"openai/{model}", stream=True, **ASKED)
    seen = {
        "text": answer.choices[0].message.content,
        "tokens": answer.usage.completion_tokens,
        "streamed": "".join(chunk.choices[0].delta.content or "" for chunk in stream),
        "async": asyncio.run(ask_without_blocking(model)),
    }
    try:
        litellm.completion(model="openai/org/nowhere", **ASKED)
    except litellm.NotFoundError as error:
        seen["missing"] = error.status_code
    print(json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1])
