# SPDX-License-Identifier: MIT
"""What models' containers may ask of the kernel: podman's own profile, less io_uring.

CRIU cannot dump io_uring, and a server that can't have it does without. Newer versions of podman
refuse it themselves; but podman has no profile at all for a privileged container that is given
none, or given its default one by name. Hence a copy.
"""

from pathlib import Path

from .. import files

# Where podman looks for its profile, the first found counts (containers.conf(5)).
DEFAULTS = ("/etc/containers/seccomp.json", "/usr/share/containers/seccomp.json")
REFUSED = frozenset({"io_uring_setup", "io_uring_enter", "io_uring_register"})
_ALLOW = "SCMP_ACT_ALLOW"


def profile() -> Path | None:
    """The file for podman's --security-opt; None where podman has but its built-in profile."""
    default = next((found for found in map(_read, DEFAULTS) if found is not None), None)
    if default is None:
        return None
    path = files.state_root() / "seccomp.json"
    wanted = without_io_uring(default)
    if files.read_json(path) != wanted:
        files.write_json(path, wanted)
    return path


def without_io_uring(default: dict[str, object]) -> dict[str, object]:
    """The same profile; what it then does not name it refuses."""
    rules = default.get("syscalls")
    return default | {"syscalls": [_narrowed(rule) for rule in rules if isinstance(rule, dict)]
                      if isinstance(rules, list) else []}  # fmt: skip


def _narrowed(rule: dict[str, object]) -> dict[str, object]:
    names = rule.get("names")
    if rule.get("action") != _ALLOW or not isinstance(names, list):
        return rule
    return rule | {"names": [name for name in names if name not in REFUSED]}


def _read(path: str) -> dict[str, object] | None:
    return files.read_json(Path(path))
