# SPDX-License-Identifier: MIT
"""Who may, by the real polkitd: root, a user without a rule, and the same user with one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from .guest import OPT, QWEN, eventually, fails, sh, state, stream, two_fakes

USER = "llmux-test"
AS_USER = ("runuser", "-u", USER, "--")
CALL = ("busctl", "call", "org.llmux", "/Manager", "org.llmux.Manager")
SWITCHES = (
    (*CALL, "Switch", "s", OPT),
    (*CALL, "Preload", "s", OPT),
)
CHANGES = (
    *SWITCHES,
    (*CALL, "Pin", "s", OPT),
    (*CALL, "Unpin", "s", OPT),
    (*CALL, "Checkpoint", "s", OPT),
    (*CALL, "Park", "s", OPT),
    (*CALL, "Warmup", "s", OPT),
    (*CALL, "Tune", "s", OPT),
    (*CALL, "Stop", "s", OPT),
    (*CALL, "Reload"),
)
RULE = Path("/etc/polkit-1/rules.d/50-llmux-test.rules")
ALLOW_SWITCH = """\
polkit.addRule(function(action, subject) {
    if (action.id == "org.llmux.switch" && subject.user == "%s") {
        return polkit.Result.YES;
    }
});
"""


@pytest.fixture
def user() -> Iterator[None]:
    """An account of no group."""
    sh("useradd", "--no-create-home", USER)
    yield
    RULE.unlink(missing_ok=True)
    sh("systemctl", "restart", "polkit.service")
    sh("userdel", USER)


def test_polkit_knows_the_actions() -> None:
    told = sh("pkaction", "--verbose", "--action-id", "org.llmux.switch")
    assert "Switch to a model" in told and "auth_admin_keep" in told
    known = sh("pkaction").splitlines()
    assert {"org.llmux.switch", "org.llmux.manage", "org.llmux.reload"} <= set(known)


def test_root_may() -> None:
    two_fakes()
    sh("llmuxctl", "switch", OPT)
    assert state(OPT) == "serving"
    sh(*CALL, "Reload")


def test_root_may_without_polkit() -> None:
    two_fakes()
    sh("systemctl", "mask", "--runtime", "--now", "polkit.service")
    try:
        sh("llmuxctl", "switch", OPT)
        status, said = fails("setpriv", "--reuid=65534", "--clear-groups", *CHANGES[-1])
        assert status == 1 and "polkit cannot be asked" in said
    finally:
        sh("systemctl", "unmask", "--runtime", "polkit.service")
    assert state(OPT) == "serving"


def test_user_without_a_rule_may_look(user: None) -> None:
    two_fakes()
    assert OPT in sh(*AS_USER, "llmuxctl", "status")
    for change in CHANGES:
        _, said = fails(*AS_USER, *change)
        assert "org.llmux." in said and "authenticate" in said.lower(), said
        _, said = fails(*AS_USER, "busctl", "--allow-interactive-authorization=no", *change[1:])
        assert "authenticat" in said.lower(), said
    status, said = fails(*AS_USER, "llmuxctl", "switch", OPT)
    assert status == 1 and "org.llmux.switch" in said and "Traceback" not in said
    assert state(OPT) == "cold"


def test_user_with_a_rule_may_what_the_rule_says(user: None) -> None:
    two_fakes()
    RULE.write_text(ALLOW_SWITCH % USER, encoding="ascii")
    RULE.chmod(0o644)
    eventually(
        lambda: sh(*AS_USER, *CHANGES[0], check=False).startswith('o "/Job/'),
        "polkit has read the rule",
    )
    eventually(lambda: state(OPT) == "serving", "the switch is made")
    assert sh(*AS_USER, *SWITCHES[1]).startswith('o "/Job/')
    for change in CHANGES[len(SWITCHES) :]:
        _, said = fails(*AS_USER, *change)
        assert "authenticate" in said.lower(), said
    assert state(OPT) == "serving"


def test_only_who_may_cancels_a_job(user: None) -> None:
    two_fakes()
    with stream(OPT, 400, seconds_per_token=0.05) as tokens:
        next(tokens)
        # Waits for the stream's end, which is far.
        job = sh(*CALL, "Switch", "s", QWEN).split('"')[1]
        cancel = ("busctl", "call", "org.llmux", job, "org.llmux.Job", "Cancel")
        _, said = fails(*AS_USER, *cancel)
        assert "authenticate" in said.lower(), said
        assert job in sh(*CALL, "ListJobs")
        sh(*cancel)
        eventually(lambda: job not in sh(*CALL, "ListJobs"), "the job is gone")
    assert state(QWEN) == "cold"
