# SPDX-License-Identifier: MIT
"""The machine of tests/machine on a real GPU: packed in parts, booted there, and measured."""
