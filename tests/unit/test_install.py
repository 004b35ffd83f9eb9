# SPDX-License-Identifier: MIT
import subprocess
from pathlib import Path

import pytest

PACKAGING = Path(__file__).resolve().parents[2] / "packaging"
LOOK = """
import site, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import install_python
print(install_python.packages(Path(sys.argv[2])) in site.getsitepackages())
"""


@pytest.mark.parametrize("prefix", ["/usr", "/usr/local"])
def test_the_package_goes_where_the_distributions_python_looks(prefix: str) -> None:
    done = subprocess.run(
        ["/usr/bin/python3", "-B", "-c", LOOK, str(PACKAGING), prefix],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_a_place_where_it_does_not_look_is_told() -> None:
    done = subprocess.run(
        ["/usr/bin/python3", "-B", "-c", LOOK, str(PACKAGING), "/opt/llmuxd"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "False\n" and "set PYTHONPATH" in done.stderr
