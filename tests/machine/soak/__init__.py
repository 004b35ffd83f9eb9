# SPDX-License-Identifier: MIT
"""Twenty clients, six models, real podman and CRIU, and one fault after the other.

`python3 -m tests.machine.soak [MINUTES]` boots the machine and prints a table: for each fault what
became of the requests that were sent while it was there. It ends with status 0 only if none of
them was answered wrongly, lost or left hanging, and nothing is left behind.
"""
