# SPDX-License-Identifier: MIT
"""CRIU, the OCI runtime that calls it, and the options it is called with."""

import re

from ... import nodes
from . import criu_conf
from .change import AddLines, MakeDirectory
from .host import Version, dotted
from .look import Look
from .result import Result, fail, ok, skip, warn

# A kernel from the first on breaks every CRIU before the second; the third is what CRIU says.
BREAKS: tuple[tuple[Version, Version, str], ...] = (
    ((6, 13), (4, 1), "Unexpected rt vDSO area bounds"),
    ((6, 16), (4, 2), "Can't get 1:16 opt"),
)
_WANTED = "install CRIU 4.2 or newer"
# What model servers need, with values that were enough for vLLM; why. (GPUs need `libdir` as well,
# but only where the plugin is elsewhere than CRIU looks by itself: the line `cuda plugin`.)
NEEDED = {
    "tcp-established": "",  # servers keep connections between their own processes
    "link-remap": "",  # and deleted files, in /dev/shm above all,
    "ghost-limit": "512M",  # some of them large
    "file-locks": "",  # and locks
    "enable-external-masters": "",  # volumes are mounts that the host shares
    "timeout": "300",  # CRIU's own 10 s are too few for many gigabytes
}
_VALUED = {name: value for name, value in NEEDED.items() if value} | {"libdir": "/usr/lib/criu"}
_SHORT_TIMEOUT = 60


def criu_check(look: Look) -> Result:
    """CRIU's own opinion of this kernel."""
    if look.host.which("criu") is None:
        return fail("criu check", "criu is not installed", _WANTED)
    done = look.host.run(["criu", "check"])
    if done.status == 0:
        return ok("criu check", "passes")
    complaint = _complaint(done.text)
    if complaint:
        return fail(
            "criu check", f"{criu_conf.DEFAULT}: {complaint}", "remove or correct that line"
        )
    hint = "the next line has the cause" if _broken(look) else "run 'criu check -v4' for the cause"
    return fail("criu check", done.reason, hint)


def criu_kernel(look: Look) -> Result:
    """This CRIU can dump on this kernel, and knows of GPUs where there are any."""
    if look.host.which("criu") is None:
        return fail("criu", "not installed", _WANTED)
    if not look.criu:
        return warn("criu", "its version cannot be seen", "run 'criu --version'")
    mine = dotted(look.criu)
    broken = _broken(look)
    if broken:
        return fail(
            "criu",
            f"CRIU {mine} cannot dump on kernel {dotted(look.kernel[:2])} ({broken})",
            _WANTED,
        )
    if look.has_gpu and look.criu < (4, 0):
        return fail("criu", f"CRIU {mine} cannot dump what is on a GPU", _WANTED)
    return ok("criu", f"{mine} on kernel {look.host.kernel()}")


def runtime(look: Look) -> Result:
    """The OCI runtime can call CRIU."""
    name = look.runtime
    number = dotted(look.runtime_version)
    if not name and not look.podman:
        return skip("runtime", "podman does not work")
    if not name:
        # As when the one that it has does not run.
        return fail(
            "runtime",
            "podman finds none that works",
            "run 'crun --version' for the cause, or install crun",
        )
    if name == "runc":
        return ok("runtime", f"runc {number}, which reads {criu_conf.RUNC}")
    if name != "crun":
        return fail(
            "runtime",
            f"{name} cannot checkpoint",
            'install crun and set runtime = "crun" in containers.conf',
        )
    if "+CRIU" not in look.podman_text("host", "ociRuntime", "version"):
        return fail(
            "runtime",
            f"crun {number} was built without CRIU",
            "install one whose 'crun --version' says +CRIU, or runc",
        )
    if look.libraries is not None and "libcriu.so.2" not in look.libraries:
        return fail(
            "runtime",
            f"crun {number} needs libcriu.so.2, which is not here",
            "install it (Debian: libcriu2, Fedora and RHEL: criu-libs)",
        )
    if look.criu_file == criu_conf.DEFAULT and "cpuset" in ",".join(look.version_1).split(","):
        # Such a crun asks CRIU by its API to manage cgroups, and that counts more than the file.
        return fail(
            "runtime",
            f"crun {number} has CRIU restore version 1's cpuset, and no container comes back",
            "update crun to 1.26 or newer with CRIU 4.2 or newer, or have version 2 alone",
        )
    return ok("runtime", f"crun {number} with CRIU, which reads {look.criu_file}")


def options(look: Look) -> Result:
    """The runtime's CRIU file is there, CRIU takes all of it, and nothing is missing in it."""
    path = look.criu_file
    if not (look.host.exists(path) or look.host.exists(criu_conf.DEFAULT)):
        return _no_file(look)
    problem = _refused(look) or _lacking(look) or _doubtful(look)
    return problem or ok(_name(path), f"{path} has all that is needed")


def network_lock(look: Look) -> Result:
    """CRIU can hold a container's network still while it dumps."""
    method = look.criu_options.get("network-lock", "iptables")
    if method != "iptables":
        return ok("network lock", f"network-lock={method}")
    programs = ["iptables-restore"]
    if look.host.exists("/proc/net/if_inet6"):
        programs.append("ip6tables-restore")
    missing = [program for program in programs if look.host.which(program) is None]
    if missing:
        return fail(
            "network lock",
            f"CRIU holds a container's network still by {_list(missing)}: not here",
            f"install iptables, or set network-lock=nftables in {look.criu_file}",
        )
    return ok("network lock", "iptables")


def _no_file(look: Look) -> Result:
    path = look.criu_file
    text = f"{path} does not exist"
    if path == criu_conf.DEFAULT:
        text += f" ({criu_conf.CRUN} is read only by crun 1.26 with CRIU 4.2)"
    wanted = _lines(_missing(look))
    hint = f"write into it, a line each: {', '.join(wanted)}"
    return fail(_name(path), text, hint, AddLines(path, wanted))


def _refused(look: Look) -> Result | None:
    path = look.criu_file
    if not look.host.exists(path):
        return None
    done = look.host.run(["criu", "check", "--config", path])
    complaint = "" if done.status == 0 else _complaint(done.text)
    if not complaint:
        return None
    return fail(
        _name(path),
        f"{path}: {complaint}, so every checkpoint fails and its log stays empty",
        _nearest(complaint, look) or "remove or correct that line",
    )


def _lacking(look: Look) -> Result | None:
    path, here = look.criu_file, look.criu_options
    # CRIU takes the next line for the value then, and says nothing.
    empty = [name for name in _VALUED if here.get(name) == ""]
    if empty:
        return fail(
            _name(path),
            f"{path}: {_list(empty)} stands there without a value",
            f"write {', '.join(_lines({name: _VALUED[name] for name in empty}))}",
        )
    missing = _missing(look)
    if missing:
        wanted = _lines(missing)
        hint = f"add: {', '.join(wanted)}"
        return fail(_name(path), f"{path} lacks {_list(missing)}", hint, AddLines(path, wanted))
    libdir = here.get("libdir")
    if libdir and not look.host.exists(libdir):
        return fail(
            _name(path),
            f"libdir={libdir} does not exist, and CRIU then dumps nothing",
            f"mkdir -p {libdir}, or remove that line",
            MakeDirectory(libdir),
        )
    return None


def _doubtful(look: Look) -> Result | None:
    timeout = look.criu_options["timeout"]
    # 0 is for no limit.
    if not timeout.isdigit() or not 0 < int(timeout) < _SHORT_TIMEOUT:
        return None
    return warn(
        _name(look.criu_file),
        f"timeout={timeout} s is short for many gigabytes",
        f"set timeout={NEEDED['timeout']} in {look.criu_file}",
    )


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _broken(look: Look) -> str:
    """What CRIU says when it fails because this kernel is too new for it; else nothing."""
    for kernel, fixed, words in BREAKS:
        if look.criu and look.kernel >= kernel and look.criu < fixed:
            return words
    return ""


def _complaint(text: str) -> str:
    """CRIU's words about an option that it does not take; else nothing."""
    found = re.search(
        r"^(?:criu: |Error: |.*Error \(.*?\): )"
        r"((?:unrecognized option|option '|invalid argument|Unknown \w+ mode).*)$",
        text,
        re.MULTILINE,
    )
    return found[1].replace("'--", "'") if found else ""


def _nearest(complaint: str, look: Look) -> str:
    found = re.match(r"unrecognized option '([^'=]+)", complaint)
    if not found:
        return ""
    known = re.findall(r"--([a-z][a-z-]+)", look.criu_help)
    return nodes.nearest(found[1], sorted(set(known)))


def _missing(look: Look) -> dict[str, str]:
    here = look.criu_options
    missing = {name: value for name, value in NEEDED.items() if name not in here}
    if look.version_1 and here.get("manage-cgroups") != "ignore":
        # CRIU would restore properties of version 1 cgroups, and fail.
        missing["manage-cgroups"] = "ignore"
    return missing


def _lines(wanted: dict[str, str]) -> tuple[str, ...]:
    return tuple(f"{name}={value}" if value else name for name, value in wanted.items())


def _list(words: list[str] | dict[str, str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last
