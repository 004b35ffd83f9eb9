# SPDX-License-Identifier: MIT
"""llmuxctl's completion in bash, fish and zsh, with the names of a llmuxd that runs."""

import asyncio
import shlex
import shutil
from pathlib import Path

import pytest

from tests.unit.fake_units import a_model

from .llmuxctl import a_terminal
from .private_bus import ROOT, PrivateBus
from .test_control import QWEN, House, house

__all__ = ["house"]


COMPLETIONS = ROOT / "packaging" / "completions"


async def complete(*words: str) -> list[str]:
    """What bash offers for the last of these words."""
    script = (
        'source "$0"; COMP_WORDS=(llmuxctl "$@"); COMP_CWORD=$#; COMP_LINE="llmuxctl $*";'
        " COMP_POINT=${#COMP_LINE}; _llmuxctl;"
        ' printf "%s\\n" "${COMPREPLY[@]}"'
    )
    shell = await asyncio.create_subprocess_exec(
        "bash", "-c", script, str(COMPLETIONS / "llmuxctl.bash"), *words,
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
        (("warmup", "--tune", "Q"), [QWEN]),
        (("warmup", "--t"), ["--tune"]),
        (("park", "--t"), []),
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


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("llmuxctl sw", "llmuxctl switch"),
        ("llmuxctl switch Q", f"llmuxctl switch {QWEN}"),
        ("llmuxctl -H me@there show Q", f"llmuxctl -H me@there show {QWEN}"),
        ("llmuxctl -H me@there:22 sho", "llmuxctl -H me@there:22 show"),
        ("llmuxctl --host=me@there sho", "llmuxctl --host=me@there show"),
        ("llmuxctl switch phi:", "llmuxctl switch phi:3b"),
        ("llmuxctl switch ph", "llmuxctl switch phi:3b"),
        ("llmuxctl warmup b phi:3", "llmuxctl warmup b phi:3b"),
        ("llmuxctl logs nobody:", "llmuxctl logs nobody:"),
    ],
)
async def test_bash_completes_words_that_readline_splits(
    house: House,  # noqa: F811
    line: str,
    completed: str,
) -> None:
    house.stage.reload(a_model(QWEN), a_model("b"), a_model("phi:3b"))
    await house.told()
    setup = f"bind 'set enable-bracketed-paste off'; source {COMPLETIONS / 'llmuxctl.bash'}"
    async with a_terminal("bash", "--norc", "--noprofile", "-i") as bash:
        bash.type(f"PS1='> '; {setup}; echo rea''dy\n")
        await bash.shows("ready\r\n")
        await bash.shows("> ")
        # ^A and a word in front turn the line into one that prints itself.
        bash.type(f"{line}\t\x01echo '=\x05='\n")
        shown = await bash.shows("=\r\n")
        assert shown.rpartition("\n=")[2].removesuffix("=\r\n").rstrip() == completed


async def test_nothing_is_offered_without_llmuxd(bus: PrivateBus) -> None:
    assert await complete("switch", "") == []


async def test_running_jobs_are_offered(house: House) -> None:  # noqa: F811
    gate = house.stage.units.hold("start", QWEN)
    house.stage.switcher.switch(QWEN)
    house.stage.switcher.switch("b")
    assert await complete("cancel", "") == ["1", "2"]
    gate.open()


# fish


async def fish(line: str) -> list[str]:
    """What fish offers at the end of this line."""
    script = f"source {COMPLETIONS / 'llmuxctl.fish'}; complete --do-complete {shlex.quote(line)}"
    shell = await asyncio.create_subprocess_exec(
        "fish", "--no-config", "-c", script,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, _ = await shell.communicate()
    return [offer.partition("\t")[0] for offer in out.decode().splitlines()]


@pytest.mark.skipif(shutil.which("fish") is None, reason="there is no fish here")
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("llmuxctl s", ["show", "status", "stop", "switch"]),
        ("llmuxctl switch Q", [QWEN]),
        ("llmuxctl logs --f", ["--follow"]),
        ("llmuxctl warmup --t", ["--tune"]),
        ("llmuxctl warmup --tune Q", [QWEN]),
        ("llmuxctl config ", ["check", "show"]),
        ("llmuxctl config show --c", ["--config"]),
        ("llmuxctl config show ", []),
        ("llmuxctl -H me@there sw", ["switch"]),
        ("llmuxctl -H me@there switch Q", [QWEN]),
        ("llmuxctl switch b ", []),
    ],
)
async def test_fish_offers(house: House, line: str, offered: list[str]) -> None:  # noqa: F811
    assert await fish(line) == offered


# zsh


@pytest.mark.skipif(shutil.which("zsh") is None, reason="there is no zsh here")
@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("llmuxctl chec", "llmuxctl check"),
        ("llmuxctl sw", "llmuxctl switch"),
        ("llmuxctl switch Q", f"llmuxctl switch {QWEN}"),
        ("llmuxctl -H there park q", "llmuxctl -H there park q"),
        ("llmuxctl warmup b Q", f"llmuxctl warmup b {QWEN}"),
        ("llmuxctl warmup --tu", "llmuxctl warmup --tune"),
        ("llmuxctl config sh", "llmuxctl config show"),
        ("llmuxctl status --js", "llmuxctl status --json"),
    ],
)
async def test_zsh_completes(
    house: House,  # noqa: F811
    line: str,
    completed: str,
    tmp_path: Path,
) -> None:
    (tmp_path / "_llmuxctl").symlink_to(COMPLETIONS / "llmuxctl.zsh")
    setup = f"PS1='> '; fpath=({tmp_path} $fpath); autoload -U compinit; compinit -u -D"
    async with a_terminal("zsh", "-f", "-i", HOME=str(tmp_path)) as zsh:
        zsh.type(f"{setup}; print rea''dy\n")
        await zsh.shows("ready")
        await zsh.shows("> ")
        # ^A and a word in front turn the line into one that prints itself.
        zsh.type(f"{line}\t\x01print -r -- '=\x05='\n")
        shown = await zsh.shows("=\r\n")
        assert shown.rpartition("\n=")[2].removesuffix("=\r\n").rstrip() == completed
