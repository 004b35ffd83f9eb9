# SPDX-License-Identifier: MIT
"""litellm as a client of llmuxd, in a process of its own: what it imports and leaves open warns.

`python3 asks_litellm.py MODEL BROKEN`; what it saw is one line of JSON. The keys are sk-all,
sk-one, which may use MODEL alone, and sk-rare, for one request a minute.
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
    "api_key": "sk-all",
    "messages": [{"role": "user", "content": "Say hello."}],
    "max_tokens": 5,
    "max_retries": 0,
}


async def ask_without_blocking(model: str) -> str:
    answer = await litellm.acompletion(model=f"openai/{model}", **ASKED)
    return str(answer.choices[0].message.content)


def error_of(model: str, **more: Any) -> str:
    """The name of the class of litellm's error."""
    try:
        litellm.completion(model=f"openai/{model}", **ASKED | more)
    except Exception as error:  # litellm has no one class for them
        return type(error).__name__
    return ""


def main(model: str, broken: str) -> None:
    answer = litellm.completion(model=f"openai/{model}", **ASKED)
    stream = litellm.completion(model=f"openai/{model}", stream=True, **ASKED)
    litellm.completion(model=f"openai/{model}", **ASKED | {"api_key": "sk-rare"})
    slow = {"fake": {"seconds_per_token": 0.5}}
    seen = {
        "text": answer.choices[0].message.content,
        "tokens": answer.usage.completion_tokens,
        "streamed": "".join(chunk.choices[0].delta.content or "" for chunk in stream),
        "async": asyncio.run(ask_without_blocking(model)),
        "errors": {
            "unknown model": error_of("org/nowhere"),
            "unknown key": error_of(model, api_key="sk-none"),
            "not its model": error_of(broken, api_key="sk-one"),
            "too often": error_of(model, api_key="sk-rare"),
            "broken": error_of(broken),
            "too slow": error_of(model, timeout=0.5, extra_body=slow),
        },
    }
    print(json.dumps(seen))


if __name__ == "__main__":
    main(*sys.argv[1:])
