# SPDX-License-Identifier: MIT
"""llmux-gpus.service: who holds how much of the GPUs' memory. The one program that asks NVML."""
