# SPDX-License-Identifier: MIT
"""vLLM's sleep mode, as vLLM 0.22 and 0.32 have it: what sleeps, and what it answers meanwhile."""

from aiohttp import web

from .engine import Engine

_TAGS = {"weights", "kv_cache"}


class FakeVllm:
    """One server. `refused` are the steps that fail with status 500; `posts` what was asked.

    It answers `text`, but noise while its weights are lost or the KV cache is not there, and
    nothing while it stands still.
    """

    def __init__(self, server: Engine, *, sleeps: bool = True, releases: bool = False):
        self.sleeps = sleeps
        self.releases = releases
        self.extension = True
        self.text = " dog"
        self.refused: set[str] = set()
        self.posts: list[str] = []
        self.asleep: set[str] = set()
        self.still = False
        self.weights_lost = False
        self.prefixes_stale = False
        server.answer = self.answer

    @property
    def awake(self) -> bool:
        """Whether all of it is there, and works."""
        return not (self.asleep or self.still or self.weights_lost or self.prefixes_stale)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Play the server."""
        step = request.raw_path
        if request.method == "POST":
            if request.path == "/collective_rpc":
                step += f" {(await request.json())['method']}"
            self.posts.append(step)
        if step in self.refused:
            return web.Response(status=500)
        match request.path:
            case "/v1/models":
                return web.json_response({"data": [{"id": "a"}]})
            case "/v1/completions":
                return self._complete()
            case "/release_kv_cache_memory" if self.releases:
                return self._release(request.method)
            case "/is_sleeping" if self.sleeps:
                return web.json_response({"is_sleeping": bool(self.asleep)})
            case "/sleep" if self.sleeps:
                return self._sleep(int(request.query["level"]))
            case "/wake_up" if self.sleeps:
                return self._wake_up(set(request.query.getall("tags", list(_TAGS))))
            case "/reset_prefix_cache" if self.sleeps:
                self.prefixes_stale = False
                return web.json_response({"success": True})
            case "/collective_rpc" if self.sleeps:
                return self._call_workers(step.partition(" ")[2])
            case _:
                return web.Response(status=404)

    def _complete(self) -> web.Response:
        if self.still:
            return web.Response(status=503)
        noise = self.weights_lost or self.asleep
        return web.json_response({"choices": [{"text": "!!!!" if noise else self.text}]})

    def _sleep(self, level: int) -> web.Response:
        self.still = True
        if level > 0:
            self.asleep = set(_TAGS)
            self.prefixes_stale = level == 2
        self.weights_lost = self.weights_lost or level == 2
        return web.json_response({"status": "sleeping"})

    def _wake_up(self, tags: set[str]) -> web.Response:
        self.asleep -= tags
        self.still = bool(self.asleep)
        return web.json_response({"status": "awake"})

    def _release(self, method: str) -> web.Response:
        if method != "POST":
            return web.Response(status=405)
        if not self.still:
            return web.Response(status=500)
        self.asleep, self.prefixes_stale = {"kv_cache"}, True
        return web.json_response({"status": "kv_cache_released"})

    def _call_workers(self, method: str) -> web.Response:
        match method:
            case "reload_weights" if "weights" not in self.asleep:
                self.weights_lost = False
            case "llmux_drop_kv_cache" if self.extension and self.still:
                self.asleep, self.prefixes_stale = {"kv_cache"}, True
            case "llmux_map_kv_cache" if self.extension:
                self.asleep -= {"kv_cache"}
            case _:
                return web.Response(status=500)
        return web.json_response({"results": [None]})
