# SPDX-License-Identifier: MIT
"""How long the switcher waits before it tries again, in seconds."""

# A start that failed once is tried again after the first of these; then the model is left alone
# for the next, and its requests are refused at once meanwhile.
COOL_DOWN = (1.0, 10.0, 30.0, 120.0, 300.0)
# A unit that would not stop is asked again no sooner.
LEAVE_AGAIN = 10.0
# A server that cannot be reached, in a unit that is up: systemd may be about to tell that it died.
CONNECT_AGAIN = 1.0
