# SPDX-License-Identifier: MIT
from pathlib import Path

import pytest

from llmuxd import memory


@pytest.mark.parametrize(("available", "short"), [(25, False), (20, False), (19, True)])
def test_a_fifth_is_kept(
    available: int, short: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = f"MemTotal:     100 kB\nMemFree:    1 kB\nMemAvailable:  {available} kB\nHugePages: 0\n"
    told += "SwapFree: 7 kB\n"
    (tmp_path / "meminfo").write_text(told)
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    assert memory.short() is short
    assert memory.available() == available << 10
    assert memory.reachable() == available + 7 << 10
    assert memory.spare() == max(0, available - 20) << 10


def test_the_kernel_tells_it() -> None:
    assert memory.short() in (True, False)
