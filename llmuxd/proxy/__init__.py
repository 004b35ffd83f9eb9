# SPDX-License-Identifier: MIT
"""The HTTP endpoint: reads which model a request names, has it serve, passes bytes through.

`server` accepts connections and answers; `routes` says what a target means; `body` and `form` find
the model's name and write another one in its place; `relay` passes requests and answers on,
`websocket` whole connections; `headers` are those that pass, `shapes` what errors look like.
"""

from .server import BACKLOG, Proxy

__all__ = ["BACKLOG", "Proxy"]
