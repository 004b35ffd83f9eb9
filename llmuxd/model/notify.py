# SPDX-License-Identifier: MIT
"""What systemd is told of the unit, by sd_notify(3)'s protocol.

Not by a library: sdnotify needs socket.py, 4 ms, and a start would wait for it.
"""

import _socket
import os


def notify(state: str) -> None:
    """Tell it; nobody is told where no unit's command runs."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    # An @ stands for the byte with which abstract addresses begin.
    place = "\0" + address[1:] if address.startswith("@") else address
    telling = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM)
    try:
        telling.sendto(state.encode(), place)
    except OSError:
        # It waits for no answer either.
        return
    finally:
        telling.close()
