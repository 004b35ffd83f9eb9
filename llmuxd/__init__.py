# SPDX-License-Identifier: MIT
"""llmuxd: all models of a GPU host behind one endpoint, each a systemd unit."""

__version__ = "0.1.0"
