# SPDX-License-Identifier: MIT
"""That the commands of the documentation are found; the machine's ring runs them."""

from tests.documented import ELSEWHERE, Command, pages, readme


def texts(commands: list[Command]) -> list[str]:
    return [command.text for command in commands]


def test_the_readmes_are_found() -> None:
    found = texts(readme())
    assert "busctl call org.llmux /Manager org.llmux.Manager Switch s Qwen/Qwen2.5-3B-Instruct" in (
        found
    )
    assert {"llmuxctl top", "llmuxctl unpin qwen", "llmuxctl warmup", "llmuxctl status"} <= {*found}
    assert len(found) > 60


def test_a_command_of_several_lines_is_one() -> None:
    (found,) = [text for text in texts(readme()) if "Once upon a time" in text]
    assert found.startswith("curl ") and found.endswith("}'")


def test_variables_go_with_the_commands_after_them() -> None:
    found = next(each for each in readme() if each.text == 'journalctl -u "$UNIT"')
    assert found.before[0].startswith("UNIT=$(systemd-escape ")


def test_the_pages_are_found() -> None:
    found = pages()
    assert {each.where for each in found} >= {
        "llmuxctl.1", "llmuxd.8", "org.llmux.5", "llmux-model@.service.8",
    }  # fmt: skip
    assert "llmuxctl -H root@localhost status" in texts(found)
    assert not [text for text in texts(found) if "polkit.addRule" in text]


def test_each_exception_is_needed() -> None:
    found = texts(readme() + pages())
    unused = [begin for begin in ELSEWHERE if not any(text.startswith(begin) for text in found)]
    assert not unused
