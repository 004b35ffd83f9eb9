# SPDX-License-Identifier: MIT
"""The cgroup of a unit's commands, and why none stays in it: the unit's clean-up would not run.

systemd starts ExecReload=, ExecStop= and ExecStopPost= of a unit that has cgroups of its own in one
that it names `.control`, makes where it is not there, and leaves there. Who kills all of a unit
(`systemctl kill --kill-whom=all -s KILL`) has the kernel kill each of its cgroups; and whatever is
started right into one that was killed ends at once, however much later (seen with kernel 6.18:
cgroup_css_set_fork compares with the caller's own). Light, for handing.py.
"""

import os

ROOT = "/sys/fs/cgroup"
CONTROL = "/.control"
# podman brings its callers there too.
BESIDE = "/runtime"


def leave(root: str = ROOT, told: str = "/proc/self/cgroup") -> None:
    """Go beside it, and take it away. Where that cannot be, the next start cleans up."""
    try:
        with open(told, encoding="utf-8") as lines:
            own = next((line[3:-1] for line in lines if line.startswith("0::")), "")
        if not own.endswith(CONTROL):
            return
        unit = root + own.removesuffix(CONTROL)
        os.makedirs(unit + BESIDE, exist_ok=True)
        with open(f"{unit}{BESIDE}/cgroup.procs", "w", encoding="ascii") as procs:
            procs.write("0")
        os.rmdir(unit + CONTROL)
    except OSError:
        return
