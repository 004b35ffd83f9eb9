# SPDX-License-Identifier: MIT
"""llmuxctl, the operator's command."""
