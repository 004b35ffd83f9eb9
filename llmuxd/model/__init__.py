# SPDX-License-Identifier: MIT
"""What runs inside a model's own unit: podman, checkpoints, the engine's health."""
