# SPDX-License-Identifier: MIT
"""Which port of the loopback address a model's container is published on.

The port is part of the container and of its checkpoint, so it should be free at each restore:
it is taken from below the kernel's range for outgoing connections, and never from another
model's checkpoint.
"""

# As in handing.py.
import _socket
import hashlib

from .. import files

HOST = "127.0.0.1"
FIRST = 21000
# Loopback answers in microseconds; in seconds.
REFUSED_WITHIN = 0.5
COUNT = 8000  # up to 28999; net.ipv4.ip_local_port_range begins at 32768


class NoPort(Exception):
    """Every port of the range is taken."""


def choose(model: str) -> int:
    """A free port for `model`, the same each time where nothing is in the way."""
    reserved = _reserved(model)
    start = int.from_bytes(hashlib.sha256(model.encode()).digest()[:4], "big")
    for step in range(COUNT):
        port = FIRST + (start + step) % COUNT
        if port not in reserved and free(port):
            return port
    raise NoPort(f"no free port from {FIRST} to {FIRST + COUNT - 1}")


def free(port: int) -> bool:
    """Whether 127.0.0.1:`port` can be listened on now, and leads nowhere else."""
    probe = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
    try:
        probe.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
        probe.bind((HOST, port))
    except OSError:
        return False
    finally:
        probe.close()
    return _refuses(port)


def _refuses(port: int) -> bool:
    """Whether nobody is behind a port that nobody listens on.

    A podman that was killed while it took a container's network down may leave its translation of
    the port to an address where there is nothing now, or another model.
    """
    probe = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
    try:
        probe.settimeout(REFUSED_WITHIN)
        probe.connect((HOST, port))
    except ConnectionRefusedError:
        return True
    except OSError:
        pass
    finally:
        probe.close()
    return False


def _reserved(model: str) -> set[int]:
    ports = set()
    for path in (files.state_root() / "checkpoints").glob("*.json"):
        record = files.read_json(path) or {}
        if record.get("model") != model and isinstance(record.get("port"), int):
            ports.add(record["port"])
    return ports  # type: ignore[return-value]
