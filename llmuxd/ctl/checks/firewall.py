# SPDX-License-Identifier: MIT
"""Other rules for packets on this host, and whether podman's and llmuxd's get along with them."""

import re

from ...config import Reach
from ...model.network import Network
from .look import Look
from .result import Result, fail, ok, skip, warn

# Where people find the file of the package.
_OURS = "/usr/share/llmuxd"
_NFTABLES = ("/etc/nftables.conf", "/etc/sysconfig/nftables.conf")
_FIREWALLD = "/etc/firewalld/firewalld.conf"
_RELOADS = "netavark-firewalld-reload.service"
_ROUTED = "DEFAULT_FORWARD_POLICY"


def firewall(look: Look) -> Result | list[Result]:
    """None of them swallows what containers send, or takes podman's ports away."""
    if not any(Network(model).is_ours for model in look.models if not model.unit):
        return skip("firewall", "no model is configured that has a network of its own")
    found = [*_nftables(look), *_ufw(look), *_firewalld(look)]
    return found or ok("firewall", "nothing that is in the way of podman's rules")


def _nftables(look: Look) -> list[Result]:
    """A ruleset that is loaded anew takes all tables with it."""
    if look.unit_property("UnitFileState", "nftables.service") != "enabled":
        return []
    for path in _NFTABLES:
        text = look.host.read(path) or ""
        if re.search(r"^\s*flush ruleset", text, re.MULTILINE) and _OURS not in text:
            return [
                warn(
                    "firewall",
                    f"{path} flushes the ruleset: with each reload of nftables.service the closed"
                    " networks are open, and podman's ports are gone",
                    f'put include "{_OURS}/*.nft" at its end, and run'
                    " 'podman network reload --all' after each reload",
                )
            ]
    return []


def _ufw(look: Look) -> list[Result]:
    """It drops what is forwarded, unless podman's rules come first, as they do in iptables."""
    if _setting(look, "/etc/ufw/ufw.conf", "ENABLED") != "yes":
        return []
    if _setting(look, "/etc/default/ufw", _ROUTED) == "ACCEPT":
        return []
    out = [model.name for model in look.models if model.network is not Reach.PRIVATE]
    if not out:
        return []
    return [
        warn(
            "firewall",
            "ufw drops what is forwarded: where podman uses nftables, containers reach nothing"
            f" outside ({', '.join(out)})",
            "ufw default allow routed (llmuxd's own rules stay), or 'network: private'",
        )
    ]


def _firewalld(look: Look) -> list[Result]:
    if look.unit_property("ActiveState", "firewalld.service") != "active":
        return []
    if _setting(look, _FIREWALLD, "StrictForwardPorts") == "yes":
        return [
            fail(
                "firewall",
                "firewalld refuses the ports that podman publishes, through which models are asked",
                f"set StrictForwardPorts=no in {_FIREWALLD}, then systemctl reload firewalld",
            )
        ]
    if look.unit_property("ActiveState", _RELOADS) != "active":
        return [
            warn(
                "firewall",
                "a reload of firewalld takes podman's ports away, and all models answer 502",
                f"systemctl enable --now {_RELOADS}, or run 'podman network reload --all' then",
            )
        ]
    return []


def _setting(look: Look, path: str, key: str) -> str:
    found = re.search(rf'^{key}\s*=\s*"?(\w+)', look.host.read(path) or "", re.MULTILINE)
    return found[1] if found else ""
