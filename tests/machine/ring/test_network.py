# SPDX-License-Identifier: MIT
"""What a model's container can reach, and that nothing of its network stays behind it."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from llmuxd import names

from .guest import (
    OPT,
    QWEN,
    complete,
    configure,
    counter,
    eventually,
    fails,
    journal,
    networks,
    sh,
    two_fakes,
    unit,
)

# A netns with a host of the internet in it, and one of this host's own network.
WORLD = "llmux-world"
INTERNET, LAN, HERE = "203.0.113.2", "192.168.77.2", "203.0.113.1"
SERVER = """
import http.server, socket, sys, threading
class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
servers = [Server(("::", int(port)), http.server.SimpleHTTPRequestHandler) for port in sys.argv[1:]]
for server in servers:
    threading.Thread(target=server.serve_forever).start()
"""
PORT, NAMES = 9090, 53
OPENED = Path("/run/systemd/system/llmuxd.socket.d/open.conf")
ADDRESS = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
EVERYWHERE = {
    "internet", "lan", "lan's names", "host", "host by its bridge", "host by its bridge, IPv6",
    "host's names",
}  # fmt: skip


def serve(*prefix: str) -> subprocess.Popen[bytes]:
    """A server on every address there; directory listings are answer enough."""
    command = ["python3", "-c", SERVER, str(PORT), str(NAMES)]
    return subprocess.Popen([*prefix, *command], stderr=subprocess.DEVNULL, cwd="/srv")


@pytest.fixture
def world() -> Iterator[None]:
    """Something to reach: this machine has no network but loopback."""
    inside = ("ip", "netns", "exec", WORLD)
    with ExitStack() as stack:
        sh("ip", "netns", "add", WORLD)
        stack.callback(sh, "ip", "netns", "delete", WORLD)
        sh("ip", "link", "add", "world", "type", "veth", "peer", "name", "eth0", "netns", WORLD)
        for address in (f"{HERE}/24", "192.168.77.1/24"):
            sh("ip", "address", "add", address, "dev", "world")
        for address in (f"{INTERNET}/24", f"{LAN}/24"):
            sh(*inside, "ip", "address", "add", address, "dev", "eth0")
        sh("ip", "link", "set", "world", "up")
        sh(*inside, "ip", "link", "set", "eth0", "up")
        for server in (serve(), serve(*inside)):
            stack.callback(server.wait)
            stack.callback(server.kill)
        there = [f"http://{address}:{PORT}" for address in (HERE, INTERNET, LAN)]
        eventually(lambda: all(map(reached, there)), "they answer", timeout=20)
        yield


def inspected(form: str, model: str = OPT) -> str:
    return sh("podman", "container", "inspect", "--format", form, names.container(model))


def reached(url: str, pid: str = "1") -> bool:
    """Whether the server there answers in the network of this process."""
    curl = ("curl", "--silent", "--max-time", "1", "--output", "/dev/null", "--write-out")
    said = sh("nsenter", f"--target={pid}", "--net", *curl, "%{http_code}", url, check=False)
    return said == "200"


def reach() -> set[str]:
    """What the model's container can connect to."""
    pid = inspected("{{.State.Pid}}")
    gateway = inspected("{{range .NetworkSettings.Networks}}{{.Gateway}}{{end}}")
    bridge = json.loads(sh("ip", "-json", "route", "get", gateway.replace(".1", ".2")))[0]["dev"]
    show = ("ip", "-json", "-6", "address", "show", "scope", "link")
    inside = ("nsenter", f"--target={pid}", "--net")
    eventually(
        lambda: "tentative" not in sh(*show) + sh(*inside, *show),
        "the addresses of IPv6 can be used",
    )
    (link_local,) = (each["local"] for each in json.loads(sh(*show, bridge))[0]["addr_info"])
    urls = {
        "internet": f"{INTERNET}:{PORT}",
        "lan": f"{LAN}:{PORT}",
        "lan's names": f"{LAN}:{NAMES}",
        "host": f"{HERE}:{PORT}",
        "host by its bridge": f"{gateway}:{PORT}",
        "host by its bridge, IPv6": f"[{link_local}%25eth0]:{PORT}",
        "host's names": f"{gateway}:{NAMES}",
    }
    assert urls.keys() == EVERYWHERE
    return {name for name, url in urls.items() if reached(f"http://{url}", pid)}


@pytest.mark.parametrize(
    ("network", "wanted"),
    [
        ({"network": "private"}, set()),
        ({}, {"internet", "lan's names", "host's names"}),
        ({"network": "open"}, EVERYWHERE),
    ],
    ids=["private", "internet", "open"],
)
def test_a_container_reaches_what_is_configured_before_a_checkpoint_and_after(
    world: None, network: dict[str, str], wanted: set[str]
) -> None:
    two_fakes(**network)
    text = complete(OPT).text
    for _ in range(2):
        assert reach() == wanted
        sh("llmuxctl", "checkpoint", OPT)
        assert complete(OPT).text == text
    assert counter(OPT) == 3


def test_a_container_reaches_no_other_before_a_checkpoint_and_after() -> None:
    """podman's own isolation, where nothing else is closed."""
    both = (OPT, QWEN)
    configure(
        {name: {"args": ["--model", name], "gpus": [gpu]} for gpu, name in enumerate(both)},
        {"network": "open"},
    )
    text = complete(OPT).text
    assert complete(QWEN).text
    for _ in range(2):
        for one, other in (both, both[::-1]):
            there = f"http://{inspected(ADDRESS, other)}:8000/health"
            assert reached(there)
            assert not reached(there, inspected("{{.State.Pid}}", one))
        sh("llmuxctl", "checkpoint", OPT)
        assert complete(OPT).text == text
    assert counter(OPT) == 3
    assert networks() == sorted(map(names.container, both))


def test_who_connects_in_vain_is_told_at_once(world: None) -> None:
    """An engine that looks for its weights in the internet goes on without it."""
    two_fakes(network="private")
    assert complete(OPT).text
    for url in (f"http://{INTERNET}:{PORT}", f"http://{HERE}:{PORT}"):
        curl = ("curl", "--silent", "--show-error", "--max-time", "5", url)
        _, said = fails("nsenter", f"--target={inspected('{{.State.Pid}}')}", "--net", *curl)
        assert "Could not connect" in said and " after 0 ms" in said


def asked_from_the_network() -> str:
    """What somebody elsewhere in this host's network is answered, status and all."""
    body = json.dumps({"model": OPT, "prompt": "Hello", "max_tokens": 3})
    curl = ("curl", "--silent", "--max-time", "60", "--write-out", " %{http_code}", "--data", body)
    url = f"http://{HERE}:4000/v1/completions"
    inside = ("ip", "netns", "exec", WORLD)
    return sh(*inside, *curl, "--header", "Content-Type: application/json", url, check=False)


def test_the_endpoint_serves_the_network_once_it_was_opened_as_the_readme_says(
    world: None,
) -> None:
    """llmuxd itself may send there nothing: the socket is systemd's."""
    two_fakes()
    assert complete(OPT).text
    assert asked_from_the_network() == " 000"
    # A model's own port is nobody else's, whatever the endpoint is.
    port = inspected('{{(index (index .HostConfig.PortBindings "8000/tcp") 0).HostPort}}')
    assert reached(f"http://127.0.0.1:{port}/health")
    assert sh("nsenter", "--net=/run/netns/" + WORLD, "curl", "--silent", "--max-time", "1",
              f"http://{HERE}:{port}/health", check=False) == ""  # fmt: skip
    OPENED.parent.mkdir(parents=True, exist_ok=True)
    OPENED.write_text(f"[Socket]\nListenStream=\nListenStream={HERE}:4000\n", encoding="ascii")
    try:
        sh("systemctl", "daemon-reload")
        sh("systemctl", "stop", "llmuxd.service")
        sh("systemctl", "restart", "llmuxd.socket")
        said = asked_from_the_network()
        assert said.endswith(" 200") and '"choices"' in said
        assert counter(OPT) == 2
        assert "whoever reaches this host's port can use every model" in journal("llmuxd.service")
    finally:
        OPENED.unlink()
        sh("systemctl", "daemon-reload")


def test_rules_that_were_flushed_come_back(world: None) -> None:
    """As many hosts' own rules begin; podman's ports are gone then too."""
    two_fakes(network="private")
    text = complete(OPT).text
    sh("podman", "network", "reload", "--all")
    assert complete(OPT).text == text
    assert reach() == set()
    sh("nft", "flush", "ruleset")
    sh("podman", "network", "reload", "--all")
    assert complete(OPT).text == text
    assert reach() == EVERYWHERE
    sh("nft", "--file", "/usr/share/llmuxd/network.nft")
    assert reach() == set()
    sh("nft", "delete", "table", "inet", "llmux")
    assert complete(QWEN).text
    assert complete(OPT).text == text
    assert reach() == set()


@contextmanager
def instead(program: str, script: str) -> Iterator[None]:
    """Have the units find this in the place of a program, whose path is $real."""
    shim = Path("/usr/local/sbin", program)
    shim.write_text(f'#!/bin/sh\nreal=/usr/sbin/{program}\n{script}\nexec $real "$@"\n')
    shim.chmod(0o755)
    try:
        yield
    finally:
        shim.unlink()


def test_where_the_network_cannot_be_closed_nothing_starts_and_nothing_is_lost() -> None:
    two_fakes(network="private")
    assert complete(OPT).text
    sh("llmuxctl", "checkpoint", OPT)
    refuse = 'case "$*" in *llmuxd*) echo "Error: no such chain" >&2; exit 1;; esac'
    # What is in force already is not loaded.
    sh("nft", "delete", "table", "inet", "llmux")
    with instead("nft", refuse):
        _, said = fails("llmuxctl", "switch", OPT)
    assert "no such chain; install nftables, or have 'network: open' in llmux.yaml" in said
    sh("llmuxctl", "switch", OPT)
    assert complete(OPT).text
    assert counter(OPT) == 2


def test_the_network_goes_with_its_container() -> None:
    two_fakes(checkpoint=False)
    assert complete(OPT).text
    assert networks() == [names.container(OPT)]
    sh("llmuxctl", "stop", OPT)
    assert networks() == []


def test_a_start_that_is_killed_between_its_network_and_its_container_leaves_neither() -> None:
    two_fakes()
    kill = 'real=/usr/bin/podman\n[ "$1" != run ] || { kill -9 $PPID; exec sleep 60; }'
    with instead("podman", kill):
        _, said = fails("systemctl", "start", names.unit(OPT))
    assert unit(OPT, "ExecMainStatus") == "9", said
    assert networks() == []
    sh("systemctl", "stop", names.unit(OPT))
    assert complete(OPT).text
    assert networks() == [names.container(OPT)]


def test_networks_without_a_container_go_with_the_next_cold_start() -> None:
    """As a power cut leaves them."""
    two_fakes()
    assert complete(OPT).text
    sh("llmuxctl", "checkpoint", OPT)
    sh("podman", "network", "create", names.container("lost"), "--label", "org.llmux.model=lost")
    sh("podman", "network", "create", "not-a-models")
    try:
        assert complete(QWEN).text
        both = sorted(map(names.container, (OPT, QWEN)))
        eventually(lambda: networks() == both, "it is gone, and no other")
        sh("podman", "network", "exists", "not-a-models")
    finally:
        sh("podman", "network", "rm", "not-a-models")
    assert complete(OPT).text
    assert counter(OPT) == 2
