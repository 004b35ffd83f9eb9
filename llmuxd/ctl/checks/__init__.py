# SPDX-License-Identifier: MIT
"""What a host must have for llmuxd, one small function for each thing."""
