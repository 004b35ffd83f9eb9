# SPDX-License-Identifier: MIT
"""API keys in a credential of systemd, which root alone can read."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from .guest import OPT, configure, eventually, post, sh

KEYS = Path("/etc/llmux/credential.yaml")
DROP_IN = Path("/run/systemd/system/llmuxd.service.d/keys.conf")


@pytest.fixture
def _credential() -> Iterator[None]:
    DROP_IN.parent.mkdir(parents=True, exist_ok=True)
    DROP_IN.write_text(
        f"[Service]\nLoadCredential=llmux-keys:{KEYS}\nRefreshOnReload=credentials\n",
        encoding="utf-8",
    )
    sh("systemctl", "daemon-reload")
    try:
        yield
    finally:
        sh("systemctl", "stop", "llmuxd.socket", "llmuxd.service")
        DROP_IN.unlink()
        KEYS.unlink(missing_ok=True)
        sh("systemctl", "daemon-reload")


def only(key: str) -> None:
    """This key and no other is known."""
    digest = hashlib.sha256(key.encode()).hexdigest()
    KEYS.write_text(json.dumps({"somebody": {"sha256": digest}}), encoding="utf-8")
    KEYS.chmod(0o600)


def status(key: str) -> int:
    """What a request with this key is answered with."""
    argv = ("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "-H", f"x-api-key: {key}")
    return int(sh(*argv, "http://127.0.0.1:4000/v1/models"))


@pytest.mark.usefixtures("_credential")
def test_credential_is_taken_with_a_reload() -> None:
    only("sk-old")
    configure({OPT: {"args": ["--model", OPT]}}, top={"keys": "llmux-keys"})
    assert post("/v1/completions", {"model": OPT}).status == 401
    assert (status("sk-old"), status("sk-new")) == (200, 401)
    pid = sh("systemctl", "show", "-P", "MainPID", "llmuxd.service")
    only("sk-new")
    sh("systemctl", "reload", "llmuxd")
    eventually(lambda: status("sk-new") == 200, "the new key holds", 10)
    assert status("sk-old") == 401
    assert sh("systemctl", "show", "-P", "MainPID", "llmuxd.service") == pid
