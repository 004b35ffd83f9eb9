# SPDX-License-Identifier: MIT
"""llmux-cuda-checkpoint as it is installed, under the name that CRIU's plugin looks for."""

import sys
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
_END = "sys.exit(main())\n"


def install(directory: Path, *before: str) -> Path:
    """The program in `directory`; `before` are lines of code that it runs before all it does."""
    text = (TOP / "packaging/llmux-cuda-checkpoint.in").read_text()
    text = text.replace("@python@", sys.executable).replace("@packages@", str(TOP))
    assert text.endswith(_END)
    text = text.removesuffix(_END) + "".join(f"{line}\n" for line in before) + _END
    path = directory / "cuda-checkpoint"
    directory.mkdir()
    path.write_text(text)
    path.chmod(0o755)
    return path
