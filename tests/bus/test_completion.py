# SPDX-License-Identifier: MIT
"""llmuxctl's completion in bash, with the names of a llmuxd that runs."""

import asyncio

import pytest

from .private_bus import ROOT, PrivateBus
from .test_control import QWEN, House, house

__all__ = ["house"]


async def complete(*words: str) -> list[str]:
    """What bash offers for the last of these words."""
    script = (
        'source "$0"; COMP_WORDS=(llmuxctl "$@"); COMP_CWORD=$#; _llmuxctl 2>/dev/null;'
        ' printf "%s\\n" "${COMPREPLY[@]}"'
    )
    shell = await asyncio.create_subprocess_exec(
        "bash", "-c", script, str(ROOT / "packaging/completions/llmuxctl.bash"), *words,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, _ = await shell.communicate()
    return out.decode().split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("s",), ["status", "show", "switch", "stop"]),
        (("switch", ""), [QWEN, "b"]),
        (("switch", "Q"), [QWEN]),
        (("warmup", QWEN, "b"), ["b"]),
        (("logs", "-f", "b"), ["b"]),
        (("logs", "-"), ["--follow", "--json", "--host", "--help"]),
        (("status", "--j"), ["--json"]),
        (("config", ""), ["check", "show"]),
        (("config", "show", "--c"), ["--config"]),
        (("-H", "there", "show", "Q"), [QWEN]),
        (("switch", "nothing"), []),
    ],
)
async def test_offers(house: House, words: tuple[str, ...], offered: list[str]) -> None:  # noqa: F811
    assert await complete(*words) == offered


async def test_nothing_is_offered_without_llmuxd(bus: PrivateBus) -> None:
    assert await complete("switch", "") == []


async def test_running_jobs_are_offered(house: House) -> None:  # noqa: F811
    gate = house.stage.units.hold("start", QWEN)
    house.stage.switcher.switch(QWEN)
    house.stage.switcher.switch("b")
    assert await complete("cancel", "") == ["1", "2"]
    gate.open()
