# SPDX-License-Identifier: MIT
"""What can break: each ends in a clear error or a cold start, with nothing left behind."""

import json
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llmuxd import names

from .guest import (
    CHECKPOINTS,
    FAKE,
    OPT,
    QWEN,
    complete,
    configure,
    counter,
    eventually,
    fails,
    image,
    journal,
    post,
    record,
    sh,
    state,
    stream,
    two_fakes,
    unit,
)


def _truncate_pages(directory: Path) -> None:
    for pages in directory.glob("pages-*.img"):
        pages.write_bytes(pages.read_bytes()[:4096])


def _overwrite_inventory(directory: Path) -> None:
    (directory / "inventory.img").write_bytes(b"not an image")


def _remove_core(directory: Path) -> None:
    for core in directory.glob("core-*.img"):
        core.unlink()


@pytest.mark.parametrize("damage", [_truncate_pages, _overwrite_inventory, _remove_core])
def test_a_corrupted_checkpoint_means_a_cold_start(damage: Callable[[Path], None]) -> None:
    two_fakes()
    text = complete(OPT).text
    sh("llmuxctl", "checkpoint", OPT)
    damage(image(OPT))
    assert complete(OPT).text == text
    assert counter(OPT) == 1  # a new server, that had one request
    assert "the checkpoint cannot be used: its file" in journal(names.unit(OPT))
    sh("llmuxctl", "checkpoint", OPT)
    assert complete(OPT).text == text
    assert counter(OPT) == 2


def _vouch_for_damage(model: str) -> None:
    """Make the record agree with the image as it is, so that CRIU is asked to restore it."""
    path = CHECKPOINTS / f"{names.slug(model)}.json"
    path.write_text(json.dumps(record(model) | {"manifest": {}}), encoding="utf-8")


@pytest.mark.parametrize("damage", [_remove_core, _truncate_pages])
def test_a_restore_that_fails_or_hangs_means_a_cold_start(damage: Callable[[Path], None]) -> None:
    two_fakes(restore_timeout=5)
    text = complete(OPT).text
    sh("llmuxctl", "checkpoint", OPT)
    damage(image(OPT))
    _vouch_for_damage(OPT)
    assert complete(OPT).text == text
    assert counter(OPT) == 1
    assert "the restore failed" in journal(names.unit(OPT))
    assert sh("pgrep", "-a", "criu", check=False) == ""


def test_a_start_that_hangs_can_be_stopped_by_hand() -> None:
    two_fakes()
    assert complete(OPT).text
    sh("llmuxctl", "checkpoint", OPT)
    _truncate_pages(image(OPT))
    _vouch_for_damage(OPT)
    sh("systemctl", "start", "--no-block", names.unit(OPT))
    eventually(lambda: sh("pgrep", "criu", check=False), "CRIU hangs")
    sh("systemctl", "stop", names.unit(OPT), timeout=20)
    assert sh("pgrep", "-a", "criu", check=False) == ""


def test_a_missing_image_means_a_cold_start() -> None:
    two_fakes()
    assert complete(OPT).text
    sh("llmuxctl", "checkpoint", OPT)
    shutil.rmtree(image(OPT))
    assert complete(OPT).text
    assert "the image is missing" in journal(names.unit(OPT))


def test_a_podman_that_is_missing_for_a_moment_costs_no_checkpoint() -> None:
    two_fakes()
    assert complete(OPT).text
    sh("llmuxctl", "checkpoint", OPT)
    podman = Path("/usr/bin/podman")
    away = podman.rename("/usr/bin/podman.away")
    try:
        answer = complete(OPT)
        assert answer.status == 503
        assert "podman: No such file or directory" in answer.json["error"]["message"]
    finally:
        away.rename(podman)
    sh("llmuxctl", "switch", OPT)
    assert complete(OPT).text
    assert counter(OPT) == 2


def test_another_container_image_of_that_name_means_a_cold_start() -> None:
    mine = "localhost/llmux-mine:latest"
    sh("podman", "tag", FAKE, mine)
    configure({OPT: {"image": mine, "args": ["--model", OPT]}})
    assert complete(OPT).text
    sh("llmuxctl", "checkpoint", OPT)
    script = f"printf 'FROM {FAKE}\nLABEL changed=yes\n' | podman build --quiet --tag {mine} -"
    sh("sh", "-c", script)
    try:
        assert complete(OPT).text
        assert "cold start: the checkpoint cannot be used: the container image changed" in journal(
            names.unit(OPT)
        )
        assert counter(OPT) == 1
    finally:
        sh("llmuxctl", "stop", OPT)
        sh("podman", "rmi", mine)


def test_a_removed_container_means_a_cold_start() -> None:
    two_fakes()
    assert complete(OPT).text
    sh("llmuxctl", "checkpoint", OPT)
    sh("podman", "rm", names.container(OPT))
    assert complete(OPT).text
    assert counter(OPT) == 1


def test_a_changed_definition_is_not_restored() -> None:
    two_fakes()
    assert complete(OPT).text
    sh("llmuxctl", "checkpoint", OPT)
    two_fakes(env={"SOMETHING": "else"})
    assert complete(OPT).text
    assert counter(OPT) == 1
    assert "the model's definition in llmux.yaml changed" in journal(names.unit(OPT))


def test_a_checkpoint_belongs_to_what_was_started_not_to_what_the_file_says_now() -> None:
    two_fakes()
    assert complete(OPT).text
    two_fakes(env={"SOMETHING": "else"})  # the old server goes on
    assert complete(OPT).text
    assert counter(OPT) == 2
    sh("llmuxctl", "checkpoint", OPT)
    assert complete(OPT).text
    assert counter(OPT) == 1


def test_a_full_disk_during_a_checkpoint_stops_the_model() -> None:
    configure(
        {
            OPT: {"args": ["--model", OPT, "--memory-mb", "64"]},
            QWEN: {"args": ["--model", QWEN]},
        }
    )
    assert complete(OPT).text
    sh("llmuxctl", "checkpoint", OPT)
    directory = image(OPT)
    sh("llmuxctl", "switch", OPT)
    sh("mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(directory))
    try:
        _, said = fails("llmuxctl", "checkpoint", OPT)
        assert "stopped without a checkpoint" in said
        # No dump was begun, and what was there before lies under the mount.
        assert "the image is missing" in record(OPT)["invalid"]
        assert unit(OPT, "ActiveState") == "inactive"
    finally:
        sh("umount", "--lazy", str(directory), check=False)
    assert state(OPT) == "cold"
    assert complete(QWEN).text
    assert complete(OPT).text


@pytest.mark.parametrize("room", [0, 4096])
def test_a_disk_that_is_full_for_the_record_too_stops_the_model(room: int) -> None:
    """`room` is what is free, in bytes, when the checkpoint begins."""
    configure(
        {
            OPT: {"args": ["--model", OPT, "--memory-mb", "64"]},
            QWEN: {"args": ["--model", QWEN]},
        }
    )
    assert complete(OPT).text
    sh("llmuxctl", "checkpoint", OPT)
    sh("llmuxctl", "switch", OPT)
    with _small_disk_for(image(OPT), CHECKPOINTS) as disk:
        (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free - room))
        _, said = fails("llmuxctl", "checkpoint", OPT)
        assert "stopped without a checkpoint" in said
        assert unit(OPT, "ActiveState") == "inactive"
        assert state(OPT) == "cold"
        assert complete(QWEN).text
        assert complete(OPT).text
        assert counter(OPT) == 1


@contextmanager
def _small_disk_for(*directories: Path) -> Iterator[Path]:
    """One file system of 8 MiB that holds all these directories and what is in them."""
    disk = Path("/run/small-disk")
    disk.mkdir()
    sh("mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk))
    mounted = [disk]
    try:
        for number, directory in enumerate(directories):
            (disk / str(number)).mkdir()
            for file in directory.glob("*.json"):
                shutil.move(file, disk / str(number))
            sh("mount", "--bind", str(disk / str(number)), str(directory))
            mounted.append(directory)
        yield disk
    finally:
        for directory in reversed(mounted):
            sh("umount", "--lazy", str(directory), check=False)
        disk.rmdir()


@pytest.mark.parametrize("place", ["/run/crun", "/run/llmux"])
def test_a_full_disk_during_a_restore_costs_no_checkpoint(place: str) -> None:
    configure({OPT: {"args": ["--model", OPT]}})
    text = complete(OPT).text
    sh("llmuxctl", "checkpoint", OPT)
    before = record(OPT)
    with _full_disk_for(Path(place)) as filler:
        answer = complete(OPT)
        assert answer.status == 503
        told = answer.json["error"]["message"]
        assert "full: make room on it" in told
        assert record(OPT) == before
        assert "cold start: the restore" not in journal(names.unit(OPT))
        assert sh("podman", "ps", "-q") == "" and unit(OPT, "ActiveState") == "failed"
        filler.unlink()
        sh("llmuxctl", "switch", OPT)
        assert complete(OPT).text == text
        assert counter(OPT) == 2
        sh("systemctl", "stop", names.unit(OPT))


@contextmanager
def _full_disk_for(directory: Path) -> Iterator[Path]:
    """What is in it on a file system of its own, full by this file."""
    disk = Path("/run/full-disk")
    disk.mkdir()
    sh("mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk))
    try:
        sh("cp", "--archive", f"{directory}/.", str(disk))
        sh("mount", "--bind", str(disk), str(directory))
        filler = directory / "filler"
        filler.write_bytes(bytes(shutil.disk_usage(directory).free))
        yield filler
    finally:
        for place in (directory, disk):
            sh("umount", "--lazy", str(place), check=False)
        disk.rmdir()


def test_a_port_that_is_taken_means_a_cold_start_on_another() -> None:
    two_fakes()
    assert complete(OPT).text
    sh("llmuxctl", "checkpoint", OPT)
    port = record(OPT)["port"]
    with socket.create_server(("127.0.0.1", port)):
        assert complete(OPT).text
        assert f"the port {port} that it listens on is taken" in journal(names.unit(OPT))
        sh("llmuxctl", "checkpoint", OPT)
    assert record(OPT)["port"] != port


def test_a_port_that_leads_elsewhere_is_passed_over() -> None:
    """As a podman leaves it that was killed while it took a network down."""
    two_fakes()
    text = complete(OPT).text
    sh("llmuxctl", "checkpoint", OPT)
    port = record(OPT)["port"]
    rule = f"ip daddr 127.0.0.1 tcp dport {port} dnat to 10.88.255.254:8000"
    sh("nft", "add table ip stale")
    try:
        sh("nft", "add chain ip stale out { type nat hook output priority -150; }")
        sh("nft", f"add rule ip stale out {rule}")
        assert complete(OPT).text == text
        assert f"the port {port} that it listens on is taken" in journal(names.unit(OPT))
    finally:
        sh("nft", "delete table ip stale")


def test_a_container_that_is_killed_by_hand_comes_back() -> None:
    two_fakes()
    text = complete(OPT).text
    sh("podman", "kill", names.container(OPT))
    eventually(lambda: state(OPT) == "failed", "llmuxd notices")
    assert "the container ended by itself" in unit(OPT, "StatusText")
    assert complete(OPT).text == text


def test_a_killed_conmon_takes_its_container_along_and_comes_back() -> None:
    two_fakes()
    assert complete(OPT).text
    sh("llmuxctl", "checkpoint", OPT)
    text = complete(OPT).text
    sh("kill", "-KILL", unit(OPT, "MainPID"))
    eventually(lambda: state(OPT) == "failed", "llmuxd notices")
    assert sh("podman", "ps", "-q") == ""
    assert complete(OPT).text == text
    assert counter(OPT) == 2  # from the checkpoint, whose server had answered one


def test_a_server_that_dies_in_a_stream_breaks_that_stream_only() -> None:
    two_fakes()
    assert complete(OPT).text
    with stream(OPT, 20, seconds_per_token=0.02, die_after=5) as tokens:
        received = list(tokens)
    assert received and received[-1] != "[DONE]"
    # One that it took still in the moment of its death would have to be asked again (backend_lost).
    eventually(lambda: state(OPT) == "failed", "llmuxd notices")
    assert complete(OPT).text


def test_a_server_that_cannot_start_is_refused_with_the_reason() -> None:
    configure({OPT: {"args": ["--no-such-option"]}, QWEN: {"args": ["--model", QWEN]}})
    answer = complete(OPT)
    assert answer.status == 503
    assert "unrecognized arguments: --no-such-option" in answer.json["error"]["message"]
    assert int(answer.headers["Retry-After"]) > 0
    at_once = complete(OPT)
    assert at_once.status == 503 and "keeps failing" in at_once.json["error"]["message"]
    assert complete(QWEN).text
    assert sh("podman", "ps", "-aq", "--filter", f"name={names.container(OPT)}") == ""


def test_a_missing_container_image_is_refused_with_the_reason() -> None:
    configure({OPT: {"image": "localhost/no-such-image:1"}})
    answer = complete(OPT)
    assert answer.status == 503 and "no-such-image" in answer.json["error"]["message"]


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"{not json", 400, "not valid JSON"),
        (b"[1]", 400, "not a JSON object"),
        (b"\xff\xfe", 400, "not valid JSON"),
        (b'{"prompt": "x"}', 400, "names no model"),
        (b'{"model": 7}', 400, "names no model"),
        (b'{"model": "facebook/opt-125"}', 404, "did you mean"),
    ],
)
def test_bad_requests_are_refused_and_start_nothing(body: bytes, status: int, says: str) -> None:
    two_fakes()
    answer = post("/v1/completions", body)
    assert answer.status == status
    assert says in answer.json["error"]["message"]
    assert [state(OPT), state(QWEN)] == ["cold", "cold"]


def test_a_wrong_name_by_every_way_says_so() -> None:
    two_fakes()
    _, said = fails("busctl", "call", "org.llmux", "/Manager", "org.llmux.Manager", "Switch", "s",
                    "facebook/opt-125")  # fmt: skip
    assert "there is no model" in said and "did you mean" in said and "Traceback" not in said
    status, said = fails("llmuxctl", "switch", "facebook/opt-125")
    assert status == 1 and "there is no model" in said
    _, said = fails("systemctl", "start", names.unit("no/such"))
    assert "has no model 'no/such'" in journal(names.unit("no/such"))
    assert "Traceback" not in journal("llmuxd.service")


def test_a_client_that_leaves_while_the_model_starts_causes_no_harm() -> None:
    configure({OPT: {"args": ["--start-delay", "2", "--model", OPT]}})
    with socket.create_connection(("127.0.0.1", 4000)) as client:
        body = json.dumps({"model": OPT, "prompt": "x"}).encode()
        client.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
        )
        client.sendall(body)
        eventually(lambda: state(OPT) == "starting", "the model starts")
    eventually(lambda: state(OPT) == "serving", "it came up all the same")
    assert complete(OPT).text
    assert counter(OPT) == 1
