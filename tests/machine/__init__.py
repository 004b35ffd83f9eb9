# SPDX-License-Identifier: MIT
"""A throw-away machine: real systemd, podman and CRIU in systemd-nspawn, on any Linux host."""
