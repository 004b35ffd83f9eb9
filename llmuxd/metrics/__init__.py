# SPDX-License-Identifier: MIT
"""What Prometheus is told, in OpenMetrics.

`counts` is what is counted as it happens, `observed` what is read when somebody asks, `engines`
what the running models' servers say of themselves, `lag` how late the event loop is; `page` puts
them together.
"""

from .counts import Counts, Visit
from .lag import Lag
from .page import CONTENT_TYPE, Page

__all__ = ["CONTENT_TYPE", "Counts", "Lag", "Page", "Visit"]
