# SPDX-License-Identifier: MIT
"""A podman before podman, for the models' units: fails or hangs where a file says so."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

WRAPPER = Path("/usr/local/bin/podman")
ORDERS = Path("/run/soak")
# /run/soak/fail.restore lets `podman container restore` fail, hang.any lets everything wait for as
# long as the file is there, and fail then.
_SCRIPT = f"""#!/bin/sh
case "$1 $2" in
    "container restore") verb=restore ;;
    "container checkpoint") verb=checkpoint ;;
    *) verb=other ;;
esac
for order in $verb any; do
    if [ -e {ORDERS}/hang.$order ]; then
        while [ -e {ORDERS}/hang.$order ]; do sleep 0.1; done
        echo "Error: the soak let it hang" >&2
        exit 125
    fi
    if [ -e {ORDERS}/fail.$order ]; then
        echo "Error: the soak lets it fail" >&2
        exit 125
    fi
done
exec /usr/bin/podman "$@"
"""


@contextmanager
def wrapped() -> Iterator[None]:
    """Have the units find it first in their PATH."""
    ORDERS.mkdir(exist_ok=True)
    WRAPPER.write_text(_SCRIPT, encoding="ascii")
    WRAPPER.chmod(0o755)
    try:
        yield
    finally:
        WRAPPER.unlink()
        for order in ORDERS.iterdir():
            order.unlink()
        ORDERS.rmdir()


@contextmanager
def misbehaving(how: str, verb: str) -> Iterator[None]:
    """`how` is fail or hang, `verb` is restore, checkpoint or any."""
    order = ORDERS / f"{how}.{verb}"
    order.touch()
    try:
        yield
    finally:
        order.unlink()
