# SPDX-License-Identifier: MIT
"""The dashboard's panels, evaluated by a real Prometheus that scraped a real run."""

import contextlib
import json
import subprocess
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .guest import OPT, QWEN, complete, eventually, post, sh, stream, two_fakes

DASHBOARD = Path("/usr/share/llmuxd/grafana.json")
PROMETHEUS = "http://127.0.0.1:9090"
CONFIG = """\
global: {scrape_interval: 500ms}
scrape_configs:
  - job_name: llmuxd
    static_configs: [{targets: ["127.0.0.1:4000"]}]
"""
# What this machine cannot show: it has no GPU, no vLLM in this test, and on hybrid hosts no memory
# controller. Their queries must still be good ones.
EMPTY_HERE = ("llmux_model_gpu_bytes", "llmux_gpu_used_bytes", "vllm:", "llmux_model_memory_bytes")


@contextmanager
def prometheus() -> Iterator[None]:
    with tempfile.TemporaryDirectory() as scratch:
        config = Path(scratch) / "prometheus.yml"
        config.write_text(CONFIG, encoding="utf-8")
        argv = [
            "prometheus", f"--config.file={config}", f"--storage.tsdb.path={scratch}/data",
            "--web.listen-address=127.0.0.1:9090", "--log.level=error",
        ]  # fmt: skip
        with subprocess.Popen(argv, stdout=subprocess.DEVNULL) as server:
            try:
                ready = ("curl", "-sS", f"{PROMETHEUS}/-/ready")
                eventually(lambda: "is Ready" in sh(*ready, check=False), "Prometheus is ready", 30)
                yield
            finally:
                server.terminate()
                server.wait()


def query(expression: str) -> list[Any]:
    """The series that the expression gives now; a wrong one is an HTTP error."""
    text = urllib.parse.urlencode({"query": expression})
    with urllib.request.urlopen(f"{PROMETHEUS}/api/v1/query?{text}", timeout=10) as answer:
        found = json.load(answer)
    assert found["status"] == "success"
    return list(found["data"]["result"])


def expressions() -> Iterator[tuple[str, str]]:
    """Each panel's title and query, with Grafana's variables as it fills them in."""
    for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]:
        for target in panel.get("targets", ()):
            text = target["expr"].replace("$__rate_interval", "1m").replace("$model", ".*")
            assert "$" not in text, text
            yield panel["title"], text


def silent() -> list[str]:
    """The panels that show nothing, although there was something to see."""
    return [
        title
        for title, text in expressions()
        if not any(name in text for name in EMPTY_HERE) and not query(text)
    ]


def test_every_panel_shows_what_happened() -> None:
    two_fakes()
    with prometheus():
        # Counters are seen to rise only from a first scrape on.
        eventually(lambda: query("llmux_queue_length"), "the first scrape", 30)
        # A series is seen to rise only after it was scraped once.
        for model in (OPT, QWEN) * 3:
            assert complete(model).text
        assert post("/v1/completions", {"model": "nobody"}).status == 404
        with stream(OPT, 20, seconds_per_token=0.02) as tokens:
            assert list(tokens)[-1] == "[DONE]"
        assert query('up{job="llmuxd"}')[0]["value"][1] == "1"
        missing = f'llmux_move_seconds_count{{model="{OPT}",phase="restore"}} > 0'
        eventually(lambda: query(missing), "the restore is scraped", 30)
        with contextlib.suppress(AssertionError):
            eventually(lambda: not silent(), "each panel has something to show", 30)
        assert silent() == []
        for _, text in expressions():
            query(text)
