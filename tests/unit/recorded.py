# SPDX-License-Identifier: MIT
"""Hosts for llmuxctl check, out of dictionaries: one without a GPU, one with an H100."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmuxd import names
from llmuxd.ctl import check
from llmuxd.ctl.checks.host import Done, Host
from llmuxd.ctl.checks.result import Result, Status
from llmuxd.model.network import RULES

CONFIG = Path("/etc/llmux/llmux.yaml")
IMAGE = "docker.io/vllm/vllm-openai:v0.8.3"
MODELS = f"""
defaults:
  image: {IMAGE}
models:
  a: {{aliases: [x]}}
  b: {{}}
"""
CRUN = """crun version 1.28
commit: 54f16ffbefcd022bf032af768b5c5ce075c18bfc
rundir: /run/crun
spec: 1.0.0
+SYSTEMD +SELINUX +APPARMOR +CAP +SECCOMP +EBPF +CRIU +JSON_C"""
CRUN_CONF = """# what vLLM needs
tcp-established
link-remap
ghost-limit=512M
file-locks
enable-external-masters
timeout 300   # seconds
libdir=/usr/lib/criu
"""
MOUNTS = "888 1043 0:38 / /sys/fs/cgroup rw,nosuid shared:446 - cgroup2 cgroup rw\n"
HYBRID_MOUNTS = """\
31 24 0:27 / /sys/fs/cgroup rw shared:5 - tmpfs tmpfs rw
32 31 0:28 / /sys/fs/cgroup/unified rw shared:6 - cgroup2 cgroup2 rw
34 31 0:30 / /sys/fs/cgroup/cpu rw shared:8 - cgroup cgroup rw,cpu
"""
SOCKET_UNIT = """LoadState=loaded
ActiveState=inactive
UnitFileState=disabled
NeedDaemonReload=no
Listen=127.0.0.1:4000 (Stream)
"""
DAEMON_UNIT = """LoadState=loaded
ActiveState=inactive
UnitFileState=disabled
NeedDaemonReload=no
ExecStart={ path=/usr/bin/llmuxd ; argv[]=/usr/bin/llmuxd ; ignore_errors=no ; pid=0 }
"""
MODEL_UNIT = """LoadState=loaded
ActiveState=inactive
UnitFileState=static
NeedDaemonReload=no
ExecStart={ path=/usr/libexec/llmux/llmux-model ; argv[]=llmux-model start check ; pid=0 }
"""
LDCONFIG = """312 libs found in cache `/etc/ld.so.cache'
\tlibcriu.so.2 (libc6,x86-64) => /usr/lib/x86_64-linux-gnu/libcriu.so.2
\tlibcuda.so.1 (libc6,x86-64) => /usr/local/nvidia/lib64/libcuda.so.1
\tlibcuda.so.1 (libc6,x86-64) => /lib/libcuda.so.1
"""
CRIU_HELP = """
     --tcp-established  checkpoint/restore established TCP connections
  --link-remap          allow one to link unlinked files back when possible
  -L|--libdir           path to a plugin directory (by default /usr/lib64/criu/)
"""
CRIU_CHECK_TAIL = "\n\nUsage:\n  criu dump|pre-dump -t PID [<options>]\n"
DRIVER = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build  (x@)\n"
    "GCC version:  gcc version 15.3.0 (GCC)\n"
)
CLOSED_DRIVER = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Tue May 27 2025\n"
NVIDIA_SMI = (
    "| NVIDIA-SMI 580.159.04             Driver Version: 580.159.04     CUDA Version: 13.0     |\n"
)
CDI = """---
cdiVersion: 0.5.0
kind: nvidia.com/gpu
devices:
- name: "0"
  containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
- name: all
containerEdits:
  mounts:
  - containerPath: /usr/lib64/libcuda.so.580.159.04
    hostPath: /usr/lib64/libcuda.so.580.159.04
"""
TCP = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt
   0: 0100007F:0FA0 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0
   1: 0100007F:A1B2 0100007F:0FA0 01 00000000:00000000 00:00000000 00000000     0
"""
GIB = 1 << 30


def label(path: str) -> str:
    """The command that tells a file's SELinux label."""
    return f"stat --dereference --format=%C -- {path}"


def podman_info(**host_changes: Any) -> dict[str, Any]:
    return {
        "host": {
            "cgroupVersion": "v2",
            "networkBackend": "netavark",
            "ociRuntime": {"name": "crun", "path": "/usr/bin/crun", "version": CRUN},
            "security": {
                "rootless": False,
                "seccompEnabled": True,
                "seccompProfilePath": "/usr/share/containers/seccomp.json",
            },
            "serviceIsRemote": False,
            **host_changes,
        },
        "store": {"graphRoot": "/var/lib/containers/storage"},
        "version": {"Version": "5.8.6"},
    }


def image(*env: str, labels: dict[str, str] | None = None, user: str = "") -> Done:
    config = {"Env": list(env), "User": user}
    return Done(0, json.dumps([{"Config": config, "Labels": labels}]))


class RecordedHost(Host):
    """A host out of dictionaries; a command that nobody recorded is not installed."""

    def __init__(self) -> None:
        super().__init__()
        self.commands: dict[str, Done] = {}
        self.files: dict[str, str | bytes] = {}
        self.free: int | None = 500 * GIB
        self.release = "6.18.44-generic"
        self.root = True
        self.needs = ["python>=3.11", "aiohttp>=3.9", "pystemd>=0.13"]
        self.packages = {"python": "3.13.5", "aiohttp": "3.11.16", "pystemd": "0.13.4"}
        self.open: dict[str, str] = {}

    def run(self, argv: Sequence[str]) -> Done:
        return self.commands.get(" ".join(argv), Done(127, "", f"{argv[0]}: No such file"))

    def read_bytes(self, path: str) -> bytes | None:
        content = self.files.get(path)
        return content.encode() if isinstance(content, str) else content

    def exists(self, path: str) -> bool:
        return path in self.files or any(file.startswith(f"{path}/") for file in self.files)

    def which(self, program: str) -> str | None:
        places = (f"{place}/{program}" for place in ("/usr/local/bin", "/usr/sbin", "/usr/bin"))
        return next((path for path in places if path in self.files), None)

    def glob(self, pattern: str) -> list[str]:
        return sorted(path for path in self.files if Path(path).match(pattern))

    def disk_free(self, path: str) -> int | None:
        return self.free

    def unsafe(self, path: str) -> str | None:
        return self.open.get(path)

    def requirements(self) -> list[str]:
        return self.needs

    def package(self, name: str) -> str | None:
        return self.packages.get(name)

    def kernel(self) -> str:
        return self.release

    def is_root(self) -> bool:
        return self.root

    # Changes that many tests make

    def podman(self, info: dict[str, Any]) -> None:
        self.commands["podman info --format json"] = Done(0, json.dumps(info))

    def criu(self, version: str) -> None:
        text = f"Version: {version}\nGitID: v{version}\n"
        self.commands["criu --no-default-config --version"] = Done(0, text)

    def units(
        self, socket: str = SOCKET_UNIT, daemon: str = DAEMON_UNIT, model: str = MODEL_UNIT
    ) -> None:
        keys = "LoadState,LoadError,ActiveState,UnitFileState,Listen,ExecStart,NeedDaemonReload"
        wanted = "llmuxd.socket llmuxd.service llmux-model@check.service"
        self.commands[f"systemctl show --property={keys} -- {wanted}"] = Done(
            0, "\n".join((socket, daemon, model))
        )

    def image(self, done: Done) -> None:
        self.commands[f"podman image inspect {IMAGE}"] = done

    def unit(self, name: str, **properties: str) -> None:
        """What systemd says of it, to whoever asks for one or more of these."""
        for key, value in properties.items():
            self.commands[f"systemctl show -P {key} {name}"] = Done(0, f"{value}\n")
        lines = "".join(f"{key}={value}\n" for key, value in properties.items())
        asked = "LoadState,Type,UnitFileState,FreezerState,NeedDaemonReload"
        self.commands[f"systemctl show --property={asked} -- {name}"] = Done(0, lines)

    def remove(self, *paths: str) -> None:
        for path in paths:
            del self.files[path]


BUSCTL = (
    "busctl --system call org.freedesktop.DBus /org/freedesktop/DBus"
    " org.freedesktop.DBus ListActivatableNames"
)
CHECK_CONF = "criu check --config /etc/criu/crun.conf"
CHECK_RULES = f"nft --check --file {RULES}"
QUERY_MEMORY = (
    "nvidia-smi --query-gpu=index,memory.total,memory.reserved --format=csv,noheader,nounits"
)
QUERY_GPUS = "nvidia-smi --query-gpu=index,name,mig.mode.current --format=csv,noheader"


def a_host() -> RecordedHost:
    """All in order, no GPU."""
    here = RecordedHost()
    here.commands = {
        "systemctl --version": Done(0, "systemd 262 (262-1)\n+PAM +AUDIT\n"),
        "criu check": Done(0, "Looks good.\n"),
        CHECK_CONF: Done(0, "Looks good.\n"),
        CHECK_RULES: Done(0, ""),
        "criu --help": Done(0, CRIU_HELP),
        "ldconfig -p": Done(0, LDCONFIG),
        BUSCTL: Done(0, 'as 2 "org.freedesktop.systemd1" "org.llmux"\n'),
    }
    here.files = {
        "/run/systemd/system/x": "",
        "/proc/self/mountinfo": MOUNTS,
        "/proc/self/cgroup": "0::/user.slice\n",
        "/proc/sys/kernel/io_uring_disabled": "0\n",
        "/proc/net/tcp": TCP.partition("   0:")[0],
        "/proc/net/if_inet6": "",
        str(CONFIG): MODELS.replace("models:", "  devices: []\nmodels:"),
        "/usr/bin/podman": "",
        "/usr/sbin/criu": "",
        "/usr/sbin/nft": "",
        "/usr/sbin/iptables-restore": "",
        "/usr/sbin/ip6tables-restore": "",
        "/etc/criu/crun.conf": CRUN_CONF,
        "/usr/lib/criu/x": "",
        "/usr/share/containers/seccomp.json": json.dumps(
            {
                "defaultAction": "SCMP_ACT_ERRNO",
                "syscalls": [{"names": ["read", "write"], "action": "SCMP_ACT_ALLOW"}],
            }
        ),
        "/usr/bin/llmuxd": "",
        "/usr/libexec/llmux/llmux-model": "",
        "/run/dbus/system_bus_socket": "",
        "/usr/share/dbus-1/system.d/org.llmux.conf": "",
    }
    here.podman(podman_info())
    here.criu("4.2.1")
    here.units()
    here.image(image("CUDA_VERSION=12.4.1"))
    return here


def a_gpu_host() -> RecordedHost:
    """All in order, one H100, SELinux enforcing."""
    here = a_host()
    here.commands |= {
        "nvidia-smi": Done(0, NVIDIA_SMI),
        QUERY_GPUS: Done(0, "0, NVIDIA H100 80GB HBM3, Disabled\n"),
        QUERY_MEMORY: Done(0, "0, 81559, 480\n"),
        "/usr/local/bin/cuda-checkpoint -h": Done(0, "--action lock|checkpoint|restore|unlock\n"),
        label("/usr/bin/podman"): Done(0, "system_u:object_r:container_runtime_exec_t:s0\n"),
    }
    here.files |= {
        str(CONFIG): MODELS,
        "/sys/fs/selinux/enforce": "1",
        "/sys/fs/selinux/booleans/container_use_xserver_devices": "1 1",
        "/proc/driver/nvidia/version": DRIVER,
        "/usr/local/nvidia/lib64/libcuda.so.580.159.04": "",
        "/usr/local/bin/cuda-checkpoint": "",
        "/usr/lib/criu/cuda_plugin.so": "",
        "/etc/cdi/nvidia.yaml": CDI,
    }
    return here


def found(host: Host, name: str) -> Result:
    (result,) = [result for result in check.run(CONFIG, host) if result.name == name]
    return result


def failing(host: Host, name: str, text: str, hint: str) -> None:
    told(host, name, Status.FAIL, text, hint)


def told(host: Host, name: str, status: Status, text: str, hint: str = "") -> None:
    result = found(host, name)
    assert (result.status, text in result.text, hint in result.hint) == (status, True, True), result
    assert bool(result.hint) == (status in (Status.FAIL, Status.WARN)), result


def record(cpu: RecordedHost, model: str, size: int, there: bool) -> None:
    path = f"/var/lib/llmux/checkpoints/{names.slug(model)}.json"
    cpu.files[path] = json.dumps({"size": size, "directory": f"/c/{model}"})
    if there:
        cpu.files[f"/c/{model}/inventory.img"] = ""
