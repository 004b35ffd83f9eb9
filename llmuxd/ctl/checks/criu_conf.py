# SPDX-License-Identifier: MIT
"""CRIU's configuration files: which one counts, and what is in it."""

from .host import Host, Version

DEFAULT = "/etc/criu/default.conf"
CRUN = "/etc/criu/crun.conf"
RUNC = "/etc/criu/runc.conf"


def chosen(host: Host, runtime: str, runtime_version: Version, criu: Version) -> str:
    """The file that CRIU reads on behalf of the runtime, or would read if it were there."""
    if runtime == "runc":
        return RUNC
    # crun hands a file over since 1.26, by a call that libcriu has since 4.2.
    if (runtime_version and runtime_version < (1, 26)) or (criu and criu < (4, 2)):
        return DEFAULT
    if not host.exists(CRUN) and host.exists(RUNC):
        return RUNC
    return CRUN


def in_effect(host: Host, path: str) -> dict[str, str]:
    """The options of the default file, which CRIU always reads, and then of `path`."""
    options: dict[str, str] = {}
    for file in dict.fromkeys((DEFAULT, path)):
        for name, value in statements(host.read(file) or ""):
            if name.startswith("no-"):
                options.pop(name.removeprefix("no-"), None)
            else:
                options[name] = value
    return options


def statements(text: str) -> list[tuple[str, str]]:
    """Each line's option and its value, as CRIU splits them; `#` begins a comment."""
    result = []
    for line in text.splitlines():
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        name, _, value = words[0].partition("=")
        if not value and len(words) > 1 and not words[1].startswith("#"):
            value = words[1]
        result.append((name, value.strip('"')))
    return result
