# SPDX-License-Identifier: MIT
"""llmuxctl check on recorded hosts: one without a GPU, one with an H100, each then broken."""

import json
import struct
import time
from pathlib import Path
from typing import Any

import pytest

from llmuxd import names, stored
from llmuxd.ctl import check
from llmuxd.ctl.checks import elf, host
from llmuxd.ctl.checks.change import MakeDirectory
from llmuxd.ctl.checks.host import Done, Host
from llmuxd.ctl.checks.result import Result, Status

from .recorded import (
    BUSCTL,
    CDI,
    CHECK_CONF,
    CHECK_RULES,
    CLOSED_DRIVER,
    CONFIG,
    CRIU_CHECK_TAIL,
    CRUN,
    CRUN_CONF,
    DAEMON_UNIT,
    DRIVER,
    GIB,
    HYBRID_MOUNTS,
    IMAGE,
    LDCONFIG,
    MODELS,
    QUERY_GPUS,
    QUERY_MEMORY,
    SOCKET_UNIT,
    TCP,
    RecordedHost,
    a_gpu_host,
    a_host,
    failing,
    found,
    image,
    podman_info,
    record,
    told,
)


@pytest.fixture
def cpu() -> RecordedHost:
    """All in order, no GPU."""
    return a_host()


@pytest.fixture
def gpu() -> RecordedHost:
    """All in order, one H100."""
    return a_gpu_host()


# The whole of it


def test_host_without_gpu_is_all_ok_or_skipped(cpu: RecordedHost) -> None:
    results = check.run(CONFIG, cpu)
    status = {result.name: result.status for result in results}
    assert set(status.values()) == {Status.OK, Status.SKIP}, results
    skipped = [name for name, value in status.items() if value is Status.SKIP]
    of_gpus = ["driver", "libcuda", "gpus", "vram", "cuda-checkpoint", "cuda plugin"]
    assert skipped == ["selinux", *of_gpus, "devices", "unit"]
    assert all(found(cpu, name).text == "no NVIDIA GPU in this host" for name in of_gpus)


def test_host_with_gpu_is_all_ok(gpu: RecordedHost) -> None:
    results = check.run(CONFIG, gpu)
    assert {result.status for result in results if result.name != "unit"} == {Status.OK}, results
    assert len(results) == len(check.CHECKS) + 1
    assert found(gpu, "gpus").text == "0: NVIDIA H100 80GB HBM3"


def test_bare_host_has_an_answer_for_everything() -> None:
    results = check.run(CONFIG, RecordedHost())
    assert not any("could not be checked" in result.text for result in results)
    assert all(result.hint for result in results if result.failed)


@pytest.mark.parametrize(
    "answer", [Done(0, "\0{[nonsense"), Done(124, "", "it hangs"), Done(0, "")]
)
def test_nonsense_raises_nothing(gpu: RecordedHost, answer: Done) -> None:
    gpu.commands = dict.fromkeys(gpu.commands, answer)
    gpu.files = {path: b"\xff\x00:[" for path in gpu.files}
    results = check.run(CONFIG, gpu)
    assert not [result for result in results if "could not be checked" in result.text]


@pytest.mark.parametrize(
    "value", ["[]", "null", "{}", '{"host": null}', '{"host": {"security": 1}}']
)
def test_strange_podman_info_raises_nothing(gpu: RecordedHost, value: str) -> None:
    gpu.commands["podman info --format json"] = Done(0, value)
    results = check.run(CONFIG, gpu)
    assert not [result for result in results if "could not be checked" in result.text]


def test_a_check_that_raises_is_one_line(
    cpu: RecordedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raises(_look: object) -> Result:
        raise RuntimeError("oh")

    monkeypatch.setattr(check, "CHECKS", (raises, *check.CHECKS))
    results = check.run(CONFIG, cpu)
    assert (results[1].name, results[1].failed) == ("raises", True)
    assert "RuntimeError('oh')" in results[1].text
    assert len(results) > len(check.CHECKS)


def test_lines() -> None:
    assert check.line(Result("podman", Status.OK, "5.8.6, rootful")) == (
        "ok    podman           5.8.6, rootful"
    )
    assert check.line(Result("criu", Status.FAIL, "not\nhere", "install it")) == (
        "fail  criu             not here: install it"
    )
    mended = Result("a", Status.WARN, "b", "c", (MakeDirectory("/d"),))
    assert json.loads(json.dumps(check.to_json(mended))) == {
        "name": "a", "status": "warn", "text": "b", "hint": "c", "changes": ["mkdir -p /d"],
    }  # fmt: skip


# Root, systemd, cgroups, podman, configuration


def test_not_root_ends_it(cpu: RecordedHost) -> None:
    cpu.root = False
    assert len(check.run(CONFIG, cpu)) == 1
    failing(cpu, "root", "only root", "sudo llmuxctl check")


def test_systemd_missing(cpu: RecordedHost) -> None:
    del cpu.commands["systemctl --version"]
    failing(cpu, "systemd", "no systemd here", "use a host")


def test_systemd_not_booted(cpu: RecordedHost) -> None:
    cpu.remove("/run/systemd/system/x")
    failing(cpu, "systemd", "not what runs this host", "boot")


def test_systemd_too_old(cpu: RecordedHost) -> None:
    cpu.commands["systemctl --version"] = Done(0, "systemd 245 (245.4-4ubuntu3.24)\n")
    failing(cpu, "systemd", "245 cannot freeze", "246 or newer")


def test_cgroups_hybrid(cpu: RecordedHost) -> None:
    cpu.files["/proc/self/mountinfo"] = HYBRID_MOUNTS
    told(cpu, "cgroups", Status.WARN, "/sys/fs/cgroup/unified", "unified_cgroup_hierarchy=1")


def test_cgroups_of_version_1_only(cpu: RecordedHost) -> None:
    cpu.files["/proc/self/mountinfo"] = HYBRID_MOUNTS.replace("cgroup2 cgroup2", "cgroup cgroup")
    failing(cpu, "cgroups", "version 1 only", "unified_cgroup_hierarchy=1")


def test_cgroups_of_both_versions_are_named(cpu: RecordedHost) -> None:
    cpu.files["/proc/self/cgroup"] = "9:name=systemd:/\n1:cpu,cpuacct:/\n0::/visitors\n"
    told(cpu, "cgroups", Status.OK, "version 1 beside it (name=systemd, cpu,cpuacct)")


def test_podman_missing(cpu: RecordedHost) -> None:
    cpu.remove("/usr/bin/podman")
    failing(cpu, "podman", "not installed", "install podman")


def test_podman_broken(cpu: RecordedHost) -> None:
    error = 'Error: default OCI runtime "crun" not found: invalid argument\n'
    cpu.commands["podman info --format json"] = Done(125, "", error)
    failing(cpu, "podman", 'default OCI runtime "crun" not found', "podman info")
    told(cpu, "runtime", Status.SKIP, "podman does not work")
    told(cpu, "image", Status.SKIP, "podman does not work")
    told(cpu, "disk", Status.SKIP, "podman does not say")


def test_podman_too_old(cpu: RecordedHost) -> None:
    cpu.podman(podman_info() | {"version": {"Version": "3.4.4"}})
    failing(cpu, "podman", "3.4.4 cannot restore", "4.5 or newer")


@pytest.mark.parametrize("version", ["4.5.1", "4.9.4-rhel", "5.0.0-dev", "4.5.0"])
def test_podman_new_enough(cpu: RecordedHost, version: str) -> None:
    cpu.podman(podman_info() | {"version": {"Version": version}})
    told(cpu, "podman", Status.OK, f"{version}, rootful, netavark, without catatonit")
    cpu.files["/usr/bin/catatonit"] = ""
    told(cpu, "podman", Status.OK, f"{version}, rootful, netavark, catatonit")


def test_podman_rootless_remote_or_cni(cpu: RecordedHost) -> None:
    cpu.podman(podman_info(security={"rootless": True}))
    failing(cpu, "podman", "rootless", "as root")
    cpu.podman(podman_info(serviceIsRemote=True))
    failing(cpu, "podman", "another host", "remote connection")
    cpu.podman(podman_info(networkBackend="cni"))
    told(cpu, "podman", Status.WARN, "CNI", "netavark")


def test_configuration_missing(cpu: RecordedHost) -> None:
    cpu.remove(str(CONFIG))
    failing(cpu, "config", f"{CONFIG} does not exist", "write it")
    told(cpu, "image", Status.SKIP, "no model")


def test_configuration_invalid(cpu: RecordedHost) -> None:
    cpu.files[str(CONFIG)] = MODELS.replace("aliases", "alises")
    failing(cpu, "config", f"{CONFIG}:5:7: unknown key 'alises'", "did you mean 'aliases'")


# CRIU


def test_criu_missing(cpu: RecordedHost) -> None:
    cpu.remove("/usr/sbin/criu")
    failing(cpu, "criu check", "not installed", "install CRIU")
    failing(cpu, "criu", "not installed", "install CRIU")


def test_criu_check_fails(cpu: RecordedHost) -> None:
    said = (
        "Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self\n"
        "Error (criu/cr-check.c:700): Kernel lacks PTRACE_PEEKSIGINFO support\n"
    )
    cpu.commands["criu check"] = Done(1, "", said)
    failing(cpu, "criu check", "Kernel lacks PTRACE_PEEKSIGINFO", "criu check -v4")


def test_criu_check_finds_its_default_file_wrong(cpu: RecordedHost) -> None:
    said = f"criu: unrecognized option '--nonsense'{CRIU_CHECK_TAIL}"
    cpu.commands["criu check"] = Done(1, "", said)
    failing(cpu, "criu check", "default.conf: unrecognized option 'nonsense'", "that line")


def test_criu_check_names_the_line_with_the_cause(cpu: RecordedHost) -> None:
    cpu.criu("3.17.1")
    said = "Error (criu/vdso.c:381): vdso: Unexpected rt vDSO area bounds\n"
    cpu.commands["criu check"] = Done(1, "", said)
    failing(cpu, "criu check", "vDSO", "the next line")


@pytest.mark.parametrize(
    ("criu", "kernel", "words"),
    [
        ("4.1.1", "6.18.44-generic", "CRIU 4.1.1 cannot dump on kernel 6.18 (Can't get 1:16 opt)"),
        ("4.1", "6.16.0", "Can't get 1:16 opt"),
        ("3.17.1", "6.13.2-1.el10", "CRIU 3.17.1 cannot dump on kernel 6.13 (Unexpected rt vDSO"),
        ("4.0", "6.18.1", "Unexpected rt vDSO area bounds"),
    ],
)
def test_criu_too_old_for_the_kernel(cpu: RecordedHost, criu: str, kernel: str, words: str) -> None:
    cpu.criu(criu)
    cpu.release = kernel
    failing(cpu, "criu", words, "install CRIU 4.2 or newer")


@pytest.mark.parametrize(
    ("criu", "kernel"),
    [("4.2", "6.18.1"), ("4.2.1", "7.0.0-rc1"), ("4.1.1", "6.15.9"), ("3.17.1", "6.12.9+deb13")],
)
def test_criu_new_enough_for_the_kernel(cpu: RecordedHost, criu: str, kernel: str) -> None:
    cpu.criu(criu)
    cpu.release = kernel
    told(cpu, "criu", Status.OK, f"{criu} on kernel {kernel}")


def test_criu_without_version(cpu: RecordedHost) -> None:
    cpu.commands["criu --no-default-config --version"] = Done(1, "")
    told(cpu, "criu", Status.WARN, "cannot be seen", "criu --version")


def test_criu_too_old_for_gpus(gpu: RecordedHost) -> None:
    gpu.criu("3.19")
    gpu.release = "6.8.0"
    failing(gpu, "criu", "on a GPU", "CRIU 4.2")


# The runtime and its options


def runtime(name: str, version: str) -> dict[str, Any]:
    return podman_info(ociRuntime={"name": name, "version": version})


def test_crun_without_criu(cpu: RecordedHost) -> None:
    cpu.podman(runtime("crun", CRUN.replace("+CRIU", "-CRIU")))
    failing(cpu, "runtime", "crun 1.28 was built without CRIU", "+CRIU")


def test_crun_without_libcriu(cpu: RecordedHost) -> None:
    cpu.commands["ldconfig -p"] = Done(0, LDCONFIG.replace("libcriu", "libother"))
    failing(cpu, "runtime", "libcriu.so.2, which is not here", "libcriu2")


def test_runtime_that_does_not_run(cpu: RecordedHost) -> None:
    """podman leaves it out then."""
    cpu.podman(podman_info(ociRuntime=None))
    failing(cpu, "runtime", "podman finds none that works", "crun --version")


def test_older_runtime_beside_version_1(cpu: RecordedHost) -> None:
    cpu.podman(runtime("crun", CRUN.replace("1.28", "1.21")))
    told(cpu, "runtime", Status.OK, "crun 1.21 with CRIU, which reads /etc/criu/default.conf")
    cpu.files["/proc/self/cgroup"] = "1:name=systemd:/\n0::/visitors\n"
    told(cpu, "runtime", Status.OK, "crun 1.21")
    cpu.files["/proc/self/cgroup"] = "3:cpu,cpuset:/\n0::/visitors\n"
    failing(cpu, "runtime", "crun 1.21 has CRIU restore version 1's cpuset", "crun to 1.26")


def test_unknown_runtime(cpu: RecordedHost) -> None:
    cpu.podman(runtime("kata", "kata-runtime 3.2.0"))
    failing(cpu, "runtime", "kata cannot checkpoint", "install crun")


def test_runc_reads_its_own_file(cpu: RecordedHost) -> None:
    cpu.podman(runtime("runc", "runc version 1.1.12\nspec: 1.0.2-dev"))
    told(cpu, "runtime", Status.OK, "runc 1.1.12, which reads /etc/criu/runc.conf")
    failing(cpu, "runc.conf", "/etc/criu/runc.conf does not exist", "ghost-limit=512M")


def test_older_crun_reads_the_default_file(cpu: RecordedHost) -> None:
    cpu.podman(runtime("crun", CRUN.replace("1.28", "1.14.3")))
    failing(cpu, "default.conf", "crun.conf is read only by crun 1.26", "tcp-established")
    cpu.files["/etc/criu/default.conf"] = CRUN_CONF
    told(cpu, "default.conf", Status.OK, "/etc/criu/default.conf has all")


def test_older_criu_reads_the_default_file(cpu: RecordedHost) -> None:
    cpu.criu("4.1.1")
    failing(cpu, "default.conf", "does not exist", "tcp-established")


def test_crun_of_unknown_version_reads_its_file(cpu: RecordedHost) -> None:
    cpu.podman(runtime("crun", CRUN.replace("1.28", "UNKNOWN")))
    told(cpu, "crun.conf", Status.OK, "has all")


def test_options_missing_file(cpu: RecordedHost) -> None:
    cpu.remove("/etc/criu/crun.conf")
    failing(
        cpu,
        "crun.conf",
        "/etc/criu/crun.conf does not exist",
        "tcp-established, link-remap, ghost-limit=512M, file-locks, enable-external-masters,"
        " timeout=300",
    )


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("tcp-established", "tcp-established"),
        ("link-remap", "link-remap"),
        ("ghost-limit=512M", "ghost-limit=512M"),
        ("file-locks", "file-locks"),
        ("enable-external-masters", "enable-external-masters"),
        ("timeout 300", "timeout=300"),
    ],
)
def test_option_missing(cpu: RecordedHost, line: str, hint: str) -> None:
    cpu.files["/etc/criu/crun.conf"] = CRUN_CONF.replace(line, "")
    name = hint.partition("=")[0]
    failing(cpu, "crun.conf", f"/etc/criu/crun.conf lacks {name}", f"add: {hint}")
    # CRIU reads that one first.
    cpu.files["/etc/criu/default.conf"] = line
    told(cpu, "crun.conf", Status.OK, "has all")


def test_option_taken_back(cpu: RecordedHost) -> None:
    cpu.files["/etc/criu/crun.conf"] = f"{CRUN_CONF}no-link-remap\n"
    failing(cpu, "crun.conf", "lacks link-remap", "link-remap")


def test_option_in_a_comment_does_not_count(cpu: RecordedHost) -> None:
    cpu.files["/etc/criu/crun.conf"] = CRUN_CONF.replace("file-locks", "# file-locks")
    failing(cpu, "crun.conf", "lacks file-locks", "file-locks")


@pytest.mark.parametrize(
    ("said", "text", "hint"),
    [
        ("criu: unrecognized option '--bogus'", "unrecognized option 'bogus'", "remove or correct"),
        (
            "criu: unrecognized option '--link-remp'",
            "so every checkpoint fails and its log stays empty",
            "did you mean 'link-remap'?",
        ),
        ("criu: option '--timeout' requires an argument", "option 'timeout' requires", "correct"),
        ("Error: invalid argument for --port: x", "invalid argument for --port: x", "correct"),
        (
            "Error (criu/config.c:9): Unknown cgroups mode `x' selected",
            "Unknown cgroups",
            "correct",
        ),
    ],
)
def test_option_that_criu_refuses(cpu: RecordedHost, said: str, text: str, hint: str) -> None:
    cpu.commands[CHECK_CONF] = Done(1, "", f"{said}{CRIU_CHECK_TAIL}")
    failing(cpu, "crun.conf", text, hint)


def test_kernel_trouble_is_not_the_options_fault(cpu: RecordedHost) -> None:
    cpu.commands[CHECK_CONF] = Done(1, "", "Error (criu/vdso.c:381): vdso: Unexpected bounds\n")
    told(cpu, "crun.conf", Status.OK, "has all")


@pytest.mark.parametrize("name", ["timeout 300", "ghost-limit=512M", "libdir=/usr/lib/criu"])
def test_option_without_its_value(cpu: RecordedHost, name: str) -> None:
    bare = name.replace("=", " ").split()[0]
    cpu.files["/etc/criu/crun.conf"] = CRUN_CONF.replace(name, bare)
    failing(cpu, "crun.conf", f"{bare} stands there without a value", f"write {bare}=")


def test_short_timeout(cpu: RecordedHost) -> None:
    cpu.files["/etc/criu/crun.conf"] = CRUN_CONF.replace("300", "5")
    told(cpu, "crun.conf", Status.WARN, "timeout=5 s is short", "timeout=300")
    cpu.files["/etc/criu/crun.conf"] = CRUN_CONF.replace("300", "0")
    told(cpu, "crun.conf", Status.OK, "has all")


def test_hybrid_host_must_leave_cgroups_alone(cpu: RecordedHost) -> None:
    cpu.files["/proc/self/cgroup"] = "3:cpuset:/\n0::/visitors\n"
    failing(cpu, "crun.conf", "lacks manage-cgroups", "manage-cgroups=ignore")
    cpu.files["/etc/criu/crun.conf"] = f"{CRUN_CONF}manage-cgroups=soft\n"
    failing(cpu, "crun.conf", "lacks manage-cgroups", "manage-cgroups=ignore")
    cpu.files["/etc/criu/crun.conf"] = f"{CRUN_CONF}manage-cgroups=ignore\n"
    told(cpu, "crun.conf", Status.OK, "has all")


def test_libdir_missing(cpu: RecordedHost) -> None:
    cpu.remove("/usr/lib/criu/x")
    failing(cpu, "crun.conf", "libdir=/usr/lib/criu does not exist", "mkdir -p /usr/lib/criu")


def test_network_lock(cpu: RecordedHost) -> None:
    cpu.remove("/usr/sbin/ip6tables-restore")
    failing(cpu, "network lock", "ip6tables-restore", "install iptables")
    cpu.remove("/proc/net/if_inet6")
    told(cpu, "network lock", Status.OK, "iptables")
    cpu.remove("/usr/sbin/iptables-restore")
    failing(cpu, "network lock", "iptables-restore", "network-lock=nftables")
    cpu.files["/etc/criu/crun.conf"] = f"{CRUN_CONF}network-lock=skip\n"
    told(cpu, "network lock", Status.OK, "network-lock=skip")


def test_the_network_is_closed(cpu: RecordedHost) -> None:
    told(cpu, "network", Status.OK, "closed by nftables: 2 internet")
    models = cpu.files[str(CONFIG)]
    assert isinstance(models, str)
    cpu.files[str(CONFIG)] = models.replace("b: {}", "b: {network: private}")
    told(cpu, "network", Status.OK, "1 internet, 1 private")
    cpu.files[str(CONFIG)] = models.replace("b: {}", "b: {podman_args: [--network=host]}")
    told(cpu, "network", Status.OK, "1 internet")
    del cpu.commands[CHECK_RULES]
    failing(cpu, "network", "does not take llmuxd's rules: nft: No such file", "network: open")
    cpu.remove("/usr/sbin/nft")
    failing(cpu, "network", "no nft", "install nftables, or set 'network: open'")
    cpu.files[str(CONFIG)] = models.replace("models:", "  network: open\nmodels:")
    told(cpu, "network", Status.SKIP, "no model")


# The GPU


def test_gpu_without_driver(cpu: RecordedHost) -> None:
    cpu.files["/sys/bus/pci/devices/0000:00:06.0/vendor"] = "0x10de\n"
    cpu.files["/sys/bus/pci/devices/0000:00:06.0/class"] = "0x030200\n"
    failing(cpu, "driver", "no driver is loaded", "modprobe nvidia")
    told(cpu, "libcuda", Status.SKIP, "no driver is loaded")
    told(cpu, "gpus", Status.SKIP, "no driver is loaded")
    # The card's sound device alone is no GPU.
    cpu.files["/sys/bus/pci/devices/0000:00:06.0/class"] = "0x040300\n"
    told(cpu, "driver", Status.SKIP, "no NVIDIA GPU")


@pytest.mark.parametrize(
    ("version", "text"),
    [
        ("535.183.01", "535.183.01 cannot checkpoint CUDA"),
        ("550.90.07", "only toggle"),
        ("555.42.06", "no checkpoint API"),
        ("565.57.01", "cannot checkpoint PyTorch"),
    ],
)
def test_driver_too_old(gpu: RecordedHost, version: str, text: str) -> None:
    gpu.files["/proc/driver/nvidia/version"] = CLOSED_DRIVER.format(version)
    failing(gpu, "driver", text, "575.57.08")


def test_driver_with_a_known_fault(gpu: RecordedHost) -> None:
    gpu.files["/proc/driver/nvidia/version"] = CLOSED_DRIVER.format("570.86.10")
    told(gpu, "driver", Status.WARN, "operation not supported", "575.57.08")
    gpu.files["/proc/driver/nvidia/version"] = CLOSED_DRIVER.format("575.57.08")
    told(gpu, "driver", Status.OK, "575.57.08")


def test_libcuda_not_in_the_cache(gpu: RecordedHost) -> None:
    gpu.commands["ldconfig -p"] = Done(0, LDCONFIG.replace("libcuda.so.1 ", "libcudart.so.13 "))
    failing(gpu, "libcuda", "not in ld.so's cache", "ldconfig")
    del gpu.commands["ldconfig -p"]
    told(gpu, "libcuda", Status.SKIP, "does not show")


def test_libcuda_of_another_driver(gpu: RecordedHost) -> None:
    gpu.remove("/usr/local/nvidia/lib64/libcuda.so.580.159.04")
    gpu.files["/usr/local/nvidia/lib64/libcuda.so.590.44.01"] = ""
    failing(gpu, "libcuda", "590.44.01, the loaded driver 580.159.04", "reboot")


def test_gpus(gpu: RecordedHost) -> None:
    gpu.commands[QUERY_GPUS] = Done(9, "NVIDIA-SMI has failed: Driver/library version mismatch\n")
    failing(gpu, "gpus", "version mismatch", "make nvidia-smi work")
    gpu.commands[QUERY_GPUS] = Done(0, "0, NVIDIA H100 80GB HBM3, Enabled\n")
    failing(gpu, "gpus", "MIG is on for GPU 0", "nvidia-smi -i 0 -mig 0")
    gpu.commands[QUERY_GPUS] = Done(0, "0, NVIDIA GeForce RTX 4090, [N/A]\n")
    told(gpu, "gpus", Status.OK, "0: NVIDIA GeForce RTX 4090")
    del gpu.commands[QUERY_GPUS]
    told(gpu, "gpus", Status.SKIP, "no nvidia-smi")


def test_gpu_that_is_not_there(gpu: RecordedHost) -> None:
    gpu.files[str(CONFIG)] = MODELS.replace("b: {}", "b: {gpus: [0, 3]}")
    failing(gpu, "gpus", "b wants GPU 3, this host has 0", "correct its 'gpus:'")
    failing(gpu, "devices", "nvidia.com/gpu=3 is not in /etc/cdi/nvidia.yaml", "nvidia-ctk")


def test_vram_that_no_gpu_has(gpu: RecordedHost) -> None:
    told(gpu, "vram", Status.OK, "GPU 0: 79.2G")
    gpu.files[str(CONFIG)] = MODELS.replace("b: {}", "b: {vram: 79GiB}")
    told(gpu, "vram", Status.OK, "GPU 0: 79.2G")
    gpu.files[str(CONFIG)] = MODELS.replace("b: {}", "b: {vram: 80GiB}")
    failing(gpu, "vram", "b wants 80.0G of GPU 0, which has 79.2G", "lower its 'vram:'")
    gpu.commands[QUERY_MEMORY] = Done(0, "0, [N/A], [N/A]\n")
    told(gpu, "vram", Status.OK, "measured when llmuxd runs")


def test_vram_is_measured(gpu: RecordedHost) -> None:
    show = "systemctl show -P"
    gpu.commands[f"{show} ActiveState llmuxd.service"] = Done(0, "active\n")
    told(gpu, "vram", Status.WARN, "is not measured", "systemctl restart llmuxd.service")
    gpu.files[str(CONFIG)] = MODELS.replace("b: {}", "b: {vram: 1GiB}")
    failing(gpu, "vram", "is not measured: llmux-gpus.socket", "systemctl restart llmuxd.service")
    gpu.commands[f"{show} ActiveState llmux-gpus.socket"] = Done(0, "active\n")
    gpu.commands[f"{show} StatusText llmux-gpus.service"] = Done(0, "Driver Not Loaded (9)\n")
    failing(gpu, "vram", "Driver Not Loaded", "systemctl status llmux-gpus.service")
    gpu.commands[f"{show} StatusText llmux-gpus.service"] = Done(0, "GPU 0: 1 of 2 MiB used\n")
    told(gpu, "vram", Status.OK, "GPU 0: 1 of 2 MiB used")


def test_io_uring(gpu: RecordedHost) -> None:
    told(gpu, "io_uring", Status.OK, "seccomp keeps containers from it")
    gpu.remove("/usr/share/containers/seccomp.json")
    told(gpu, "io_uring", Status.WARN, "cannot be checkpointed", "kernel.io_uring_disabled=2")
    gpu.remove("/proc/sys/kernel/io_uring_disabled")
    told(gpu, "io_uring", Status.WARN, "cannot be checkpointed", "UV_USE_IO_URING=0")
    gpu.files["/proc/sys/kernel/io_uring_disabled"] = "2\n"
    told(gpu, "io_uring", Status.OK, "=2")


def test_io_uring_of_a_model_with_a_profile_of_its_own(gpu: RecordedHost) -> None:
    argument = "--security-opt=seccomp=unconfined"
    gpu.files[str(CONFIG)] = MODELS.replace("b: {}", f"b: {{podman_args: ['{argument}']}}")
    told(gpu, "io_uring", Status.WARN, "b may use it", "sysctl")


def test_io_uring_without_gpu(cpu: RecordedHost) -> None:
    cpu.podman(podman_info(security={"seccompEnabled": False}))
    told(cpu, "io_uring", Status.SKIP, "engines on GPUs do")


def test_cuda_checkpoint(gpu: RecordedHost) -> None:
    command = "/usr/local/bin/cuda-checkpoint -h"
    gpu.commands[command] = Done(0, "--toggle --pid <pid>\n")
    failing(gpu, "cuda-checkpoint", "has no --action", "newer")
    gpu.commands[command] = Done(1, "", "error while loading shared libraries: libcuda.so.1\n")
    failing(gpu, "cuda-checkpoint", "libcuda.so.1", "install it anew")
    gpu.remove("/usr/local/bin/cuda-checkpoint")
    failing(gpu, "cuda-checkpoint", "not in a unit's PATH", "/usr/local/bin")


def test_cuda_plugin_missing(gpu: RecordedHost) -> None:
    gpu.remove("/usr/lib/criu/cuda_plugin.so")
    failing(gpu, "cuda plugin", "/usr/lib/criu/cuda_plugin.so is missing", "from CRIU 4.2.1")


def test_cuda_plugin_where_criu_does_not_look(gpu: RecordedHost) -> None:
    gpu.files["/etc/criu/crun.conf"] = CRUN_CONF.replace("libdir=/usr/lib/criu", "")
    failing(gpu, "cuda plugin", "CRIU looks in /usr/lib64/criu", "libdir=/usr/lib/criu in")
    gpu.files["/usr/lib64/criu/cuda_plugin.so"] = ""
    told(gpu, "cuda plugin", Status.OK, "/usr/lib64/criu/cuda_plugin.so")


def test_cuda_plugin_of_another_criu(gpu: RecordedHost) -> None:
    gpu.files["/usr/sbin/criu"] = elf_file(offered=["print_on_level"], expected=["malloc@libc"])
    gpu.files["/usr/lib/criu/cuda_plugin.so"] = elf_file(
        offered=["CR_PLUGIN_DESC"], expected=["print_on_level", "malloc@libc", "weak?"]
    )
    told(gpu, "cuda plugin", Status.OK, "cuda_plugin.so")
    gpu.files["/usr/lib/criu/cuda_plugin.so"] = elf_file(
        offered=[], expected=["print_on_level", "check_and_remove_inventory_plugin"]
    )
    failing(
        gpu,
        "cuda plugin",
        "another CRIU version (undefined symbol: check_and_remove_inventory_plugin)",
        "build it from CRIU 4.2.1",
    )


def elf_file(offered: list[str], expected: list[str]) -> bytes:
    """A file with just dynamic symbols; `@` marks those with a library's version, `?` weak ones."""
    names, table, versions = b"\0", bytes(24), struct.pack("<H", 0)
    for home, symbol in [(1, name) for name in offered] + [(0, name) for name in expected]:
        info = 0x22 if symbol.endswith("?") else 0x12
        table += struct.pack("<IBBHQQ", len(names), info, 0, home, 0, 0)
        versions += struct.pack("<H", 2 if "@" in symbol else 1)
        names += symbol.rstrip("?").partition("@")[0].encode() + b"\0"
    parts = [(11, table, 1), (3, names, 0), (0x6FFFFFFF, versions, 0)]
    body, headers = b"", b""
    for kind, content, link in parts:
        headers += struct.pack(
            "<IIQQQQIIQQ", 0, kind, 0, 0, 64 + len(body), len(content), link, 0, 1, 0
        )
        body += content
    start = b"\x7fELF\x02\x01".ljust(0x28, b"\0") + struct.pack("<Q", 64 + len(body))
    return start.ljust(0x3A, b"\0") + struct.pack("<HHH", 64, len(parts), 0) + body + headers


def test_elf_files_that_are_none() -> None:
    assert elf.symbols(b"") is None
    assert elf.symbols(b"#!/bin/sh\nexec criu") is None
    whole = elf_file(["a"], ["b"])
    assert elf.symbols(whole) == (frozenset({"a"}), frozenset({"b"}))
    for length in range(len(whole)):
        elf.symbols(whole[:length])


# Devices, images, disk


def test_cdi_missing(gpu: RecordedHost) -> None:
    gpu.remove("/etc/cdi/nvidia.yaml")
    failing(gpu, "devices", "no CDI file names nvidia.com/gpu=0", "nvidia-ctk cdi generate")
    gpu.files["/var/run/cdi/nvidia.yaml"] = CDI
    told(gpu, "devices", Status.OK, "nvidia.com/gpu=0")


def test_cdi_as_json_where_podman_looks(gpu: RecordedHost) -> None:
    gpu.remove("/etc/cdi/nvidia.yaml")
    gpu.podman(podman_info(cdiSpecDirs=["/opt/cdi"]))
    spec = {"kind": "nvidia.com/gpu", "devices": [{"name": "0"}]}
    gpu.files["/opt/cdi/nvidia.json"] = json.dumps(spec)
    told(gpu, "devices", Status.OK, "nvidia.com/gpu=0")


def test_cdi_of_another_driver(gpu: RecordedHost) -> None:
    gpu.files["/etc/cdi/nvidia.yaml"] = CDI.replace("580.159.04", "570.86.10")
    failing(gpu, "devices", "is for driver 570.86.10, loaded is 580.159.04", "nvidia-ctk")


@pytest.mark.parametrize("text", ["devices: [", "just text", "devices: 3"])
def test_cdi_unreadable(gpu: RecordedHost, text: str) -> None:
    gpu.files["/etc/cdi/nvidia.yaml"] = text
    failing(gpu, "devices", "/etc/cdi/nvidia.yaml cannot be read", "nvidia-ctk")


def test_cdi_names_without_gpu(cpu: RecordedHost) -> None:
    cpu.files[str(CONFIG)] = MODELS
    told(cpu, "devices", Status.WARN, "models are given nvidia.com/gpu=0", "devices: []")


def test_device_files(gpu: RecordedHost) -> None:
    gpu.files[str(CONFIG)] = MODELS.replace(
        "models:", "  devices: ['/dev/nvidia0:/dev/x']\nmodels:"
    )
    failing(gpu, "devices", "/dev/nvidia0 does not exist", "nvidia-modprobe")
    gpu.files["/dev/nvidia0"] = ""
    told(gpu, "devices", Status.OK, "/dev/nvidia0")


def test_image_missing(cpu: RecordedHost) -> None:
    cpu.image(Done(125, "[]\n", f"Error: {IMAGE}: image not known\n"))
    failing(cpu, "image", f"{IMAGE} is not here", f"podman pull {IMAGE}")


def test_local_image_missing(cpu: RecordedHost) -> None:
    cpu.files[str(CONFIG)] = MODELS.replace(IMAGE, "localhost/mine")
    said = "Error: localhost/mine: image not known\n"
    cpu.commands["podman image inspect localhost/mine"] = Done(125, "[]\n", said)
    failing(cpu, "image", "localhost/mine is not here", "build it")


def test_image_unreadable(cpu: RecordedHost) -> None:
    cpu.image(Done(125, "", "Error: database is locked\n"))
    failing(cpu, "image", "database is locked", "podman image inspect")


def test_each_image_once(cpu: RecordedHost) -> None:
    cpu.files[str(CONFIG)] = MODELS.replace("b: {}", "b: {}\n  c: {image: other}")
    cpu.commands["podman image inspect other"] = image()
    images = [result.text for result in check.run(CONFIG, cpu) if result.name == "image"]
    assert images == [f"{IMAGE}, CUDA 12.4", "other"]


@pytest.mark.parametrize(
    ("found_image", "status", "text"),
    [
        (image("CUDA_VERSION=13.0.1"), Status.OK, "CUDA 13.0"),
        (image("NVIDIA_REQUIRE_CUDA=cuda>=12.8 brand=tesla,driver>=535"), Status.OK, "CUDA 12.8"),
        (image("CUDA_VERSION=13.2.0"), Status.WARN, "has CUDA 13.2, driver 580.159.04 runs 13.0"),
        (image("CUDA_VERSION=14.0.0"), Status.FAIL, "has CUDA 14.0"),
        (image(labels={"com.nvidia.cuda.version": "14.1"}), Status.FAIL, "has CUDA 14.1"),
        (image(), Status.OK, IMAGE),
    ],
)
def test_image_and_driver(gpu: RecordedHost, found_image: Done, status: Status, text: str) -> None:
    gpu.image(found_image)
    hint = "" if status is Status.OK else "install a newer driver"
    told(gpu, "image", status, text, hint)


@pytest.mark.parametrize(
    ("found_image", "home"),
    [
        (image("HOME=/home/vllm", user="2000"), "/home/vllm"),
        (image(user="vllm:0"), "that of user vllm"),
        (image(user="root:root"), ""),
        (image("HOME=/root", user="0"), ""),
    ],
)
def test_a_read_only_image_whose_servers_home_is_elsewhere(
    cpu: RecordedHost, found_image: Done, home: str
) -> None:
    cpu.image(found_image)
    if not home:
        told(cpu, "image", Status.OK, IMAGE)
        return
    told(cpu, "image", Status.WARN, f"has its server's home at {home}, which a", "HOME in")
    configured = MODELS.replace("  b: {}", "  b: {env: {HOME: /home/vllm}}")
    cpu.files[str(CONFIG)] = configured.replace("aliases: [x]", "read_only: false")
    told(cpu, "image", Status.OK, IMAGE)


def test_cuda_of_the_driver_without_nvidia_smi(gpu: RecordedHost) -> None:
    del gpu.commands["nvidia-smi"]
    gpu.image(image("CUDA_VERSION=14.0.0"))
    failing(gpu, "image", "runs 13.0", "CUDA 13.0")
    gpu.files["/proc/driver/nvidia/version"] = DRIVER.replace("580.159.04", "720.10.01")
    told(gpu, "image", Status.OK, "CUDA 14.0")


def test_disk_by_guess(gpu: RecordedHost) -> None:
    told(gpu, "disk", Status.OK, "2 checkpoints take 60.0G (a guess for 2: 30.0G each)")
    gpu.free = 40 * GIB
    told(gpu, "disk", Status.WARN, "has 40.0G for them", "free some space")
    gpu.free = GIB // 2
    failing(gpu, "disk", "has 512M for them", "checkpoint: false")
    gpu.free = None
    told(gpu, "disk", Status.WARN, "not known", "df")


def test_disk_by_records(cpu: RecordedHost) -> None:
    record(cpu, "a", 9 * GIB, there=True)
    record(cpu, "b", 3 * GIB, there=False)
    cpu.free = 3 * GIB
    told(cpu, "disk", Status.OK, "2 checkpoints take 12.0G, /var/lib/containers/storage has 12.0G")
    cpu.free = 2 * GIB
    told(cpu, "disk", Status.WARN, "has 11.0G for them", "free some space")


@pytest.mark.parametrize("text", ["", "{}", '{"size": null, "directory": 3}', "[]"])
def test_disk_with_a_broken_record(cpu: RecordedHost, text: str) -> None:
    cpu.files[f"/var/lib/llmux/checkpoints/{names.slug('a')}.json"] = text
    told(cpu, "disk", Status.OK, "a guess for 2: 4.0G each")


def test_disk_where_nothing_is_checkpointed(cpu: RecordedHost) -> None:
    cpu.files[str(CONFIG)] = MODELS.replace("models:", "  checkpoint: false\nmodels:")
    told(cpu, "disk", Status.OK, "0 checkpoints take nothing")


# llmuxd's own

FORM_FILE = "/var/lib/llmux/form.json"


def test_state_of_this_release_or_an_earlier_one(cpu: RecordedHost) -> None:
    told(cpu, "state", Status.OK, "none yet")
    record(cpu, "a", GIB, there=True)
    told(cpu, "state", Status.OK, f"form 1, which llmuxd makes {stored.FORM} as it starts")
    cpu.files[FORM_FILE] = json.dumps({"form": stored.FORM})
    told(cpu, "state", Status.OK, f"/var/lib/llmux, form {stored.FORM}")


@pytest.mark.parametrize("text", ['{"form": 99}', "{", "[]", ""])
def test_state_of_a_newer_release(cpu: RecordedHost, text: str) -> None:
    cpu.files[FORM_FILE] = text
    failing(cpu, "state", f"this llmuxd knows 1 to {stored.FORM}", "install that release again")


def test_units_not_installed(cpu: RecordedHost) -> None:
    cpu.units(model="LoadState=not-found\nActiveState=inactive\n")
    failing(cpu, "units", "systemd does not know llmux-model@.service", "daemon-reload")


def test_units_masked_broken_or_changed(cpu: RecordedHost) -> None:
    cpu.units(socket="LoadState=masked\nActiveState=inactive\n")
    failing(cpu, "units", "llmuxd.socket is masked", "systemctl unmask llmuxd.socket")
    error = 'org.freedesktop.systemd1.BadUnitSetting "Unit llmuxd.service has a bad setting."'
    cpu.units(daemon=f"LoadState=bad-setting\nLoadError={error}\n")
    failing(cpu, "units", "Unit llmuxd.service has a bad setting.", "systemctl status")
    cpu.units(daemon=DAEMON_UNIT.replace("ActiveState=inactive", "ActiveState=failed"))
    failing(cpu, "units", "llmuxd.service has failed", "systemctl status llmuxd.service")
    cpu.units(daemon=DAEMON_UNIT.replace("NeedDaemonReload=no", "NeedDaemonReload=yes"))
    told(cpu, "units", Status.WARN, "changed on disk", "daemon-reload")


def test_units_without_their_program(cpu: RecordedHost) -> None:
    cpu.remove("/usr/libexec/llmux/llmux-model")
    failing(cpu, "units", "llmux-model@.service starts /usr/libexec/llmux/llmux-model", "install")


def test_units_without_systemd(cpu: RecordedHost) -> None:
    cpu.commands = {}
    failing(cpu, "units", "systemctl does not answer", "systemctl status")
    told(cpu, "port", Status.OK, "4000 is free")


def test_port_taken(cpu: RecordedHost) -> None:
    cpu.files["/proc/net/tcp"] = TCP
    failing(cpu, "port", "4000 is taken", "ListenStream=")
    said = 'LISTEN 0 5 127.0.0.1:4000 0.0.0.0:* users:(("socat",pid=1921,fd=5))\n'
    cpu.commands["ss -Hltnp sport = :4000"] = Done(0, said)
    failing(cpu, "port", "4000 is taken by socat (PID 1921)", "end that")


def test_port_taken_by_llmuxd(cpu: RecordedHost) -> None:
    cpu.files["/proc/net/tcp"] = TCP
    cpu.units(socket=SOCKET_UNIT.replace("inactive", "active"))
    told(cpu, "port", Status.OK, "4000, and llmuxd has it")


def test_port_of_a_changed_socket(cpu: RecordedHost) -> None:
    cpu.files["/proc/net/tcp"] = TCP
    cpu.units(socket=SOCKET_UNIT.replace(":4000", ":8080"))
    told(cpu, "port", Status.OK, "8080 is free")


def test_bus(cpu: RecordedHost) -> None:
    cpu.commands[BUSCTL] = Done(0, 'as 1 "org.freedesktop.systemd1"\n')
    failing(cpu, "bus", "does not know org.llmux", "systemctl reload dbus")
    cpu.commands[BUSCTL] = Done(1, "", "Failed to connect to bus: Connection refused\n")
    failing(cpu, "bus", "Connection refused", "systemctl status dbus")
    del cpu.commands[BUSCTL]
    told(cpu, "bus", Status.SKIP, "no busctl")
    cpu.remove("/usr/share/dbus-1/system.d/org.llmux.conf")
    failing(cpu, "bus", "nobody may own org.llmux", "install llmuxd")
    cpu.remove("/run/dbus/system_bus_socket")
    failing(cpu, "bus", "no system bus", "dbus.socket")


# The real host


def test_command_output_and_status() -> None:
    done = Host().run(["sh", "-c", "echo out; echo Error: err >&2; exit 3"])
    assert done == (3, "out\n", "Error: err\n")
    assert done.reason == "err"


def test_missing_program() -> None:
    assert Host().run(["/nonexistent/program"]).status == 127


def test_command_that_hangs_with_its_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "TIMEOUT", 0.2)
    begin = time.monotonic()
    here = Host()
    assert here.run(["sh", "-c", "sleep 60 & setsid sleep 2 & sleep 60"]).status == 124
    assert here.run(["sh", "-c", "exit 0"]).status == 124
    assert time.monotonic() - begin < 1.5


def test_real_files(tmp_path: Path) -> None:
    here = Host()
    (tmp_path / "a").write_bytes(b"\xff text")
    assert here.read(str(tmp_path / "a")) == "\ufffd text"
    assert here.read(str(tmp_path)) is None
    assert here.read(str(tmp_path / "b")) is None
    assert (here.exists(str(tmp_path / "a")), here.exists(str(tmp_path / "b"))) == (True, False)
    assert here.glob(f"{tmp_path}/*") == [str(tmp_path / "a")]
    assert (here.disk_free(str(tmp_path)) or 0) > 0
    assert here.disk_free(str(tmp_path / "b")) is None
    assert here.which("sh") in ("/usr/bin/sh", "/bin/sh")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("crun version 1.28", (1, 28)),
        ("systemd 252 (252.38-1~deb12u1)", (252,)),
        ("5.0.0-dev", (5, 0, 0)),
        ("UNKNOWN", ()),
        ("", ()),
    ],
)
def test_versions(text: str, number: tuple[int, ...]) -> None:
    assert host.version(text) == number
