# SPDX-License-Identifier: MIT
"""Checkpoint once and restore many times, and the canary that proves what came back."""

import http.client
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmuxd import names

from .guest import (
    CHECKPOINTS,
    OPT,
    QWEN,
    complete,
    configure,
    counter,
    eventually,
    fails,
    image,
    journal,
    record,
    sh,
    state,
    stop_everything,
    two_fakes,
)


def _pristine(**more: Any) -> None:
    """The two models, as an engine that has a canary."""
    configure(
        {
            name: {"args": ["--model", name], "snapshot": "pristine", "engine": "vllm", **more}
            for name in (OPT, QWEN)
        }
    )


@pytest.fixture
def tmpfs() -> Iterator[Path]:
    """Where one may be mounted, and is not any more."""
    directory = Path("/srv/llmux-images")
    directory.mkdir(mode=0o700)
    yield directory
    stop_everything()
    sh("umount", str(directory), check=False)
    shutil.rmtree(directory)


def _files(model: str) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in image(model).iterdir()}


def _run(model: str) -> Any:
    """What the helper wrote of the model's run."""
    return json.loads(Path(f"/run/llmux/{names.slug(model)}.json").read_text())


def _behave(model: str, **how: object) -> None:
    """Tell the fake engine of a running model, past the proxy."""
    port = _run(model)["port"]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("POST", "/control", json.dumps(how))
    assert connection.getresponse().status == 200
    connection.close()


def test_one_checkpoint_is_restored_as_often_as_wanted() -> None:
    _pristine()
    sh("llmuxctl", "warmup")
    told, files = record(OPT), _files(OPT)
    text = complete(OPT).text
    for _ in range(5):
        assert complete(OPT).text == text
        # Each time as it was after the warm-up: the canary's request, and those since.
        before = counter(OPT)
        assert complete(QWEN).text
        eventually(lambda: state(OPT) == "checkpointed", "it has left")
        assert complete(OPT).text == text
        assert counter(OPT) <= before
    assert (record(OPT), _files(OPT)) == (told, files)
    assert "cold start" not in journal(names.unit(OPT)).replace("cold start: there is no", "")


def test_a_checkpoint_by_hand_of_a_restored_model_writes_nothing() -> None:
    _pristine()
    sh("llmuxctl", "warmup", OPT)
    files = _files(OPT)
    sh("llmuxctl", "switch", OPT)
    sh("systemctl", "stop", names.unit(OPT))
    assert sh("systemctl", "show", "-P", "Result", names.unit(OPT)) == "success"
    assert _files(OPT) == files
    assert complete(OPT).text


def test_a_pristine_image_that_was_damaged_meanwhile_is_taken_anew() -> None:
    _pristine()
    sh("llmuxctl", "warmup", OPT)
    sh("llmuxctl", "switch", OPT)
    (image(OPT) / "inventory.img").write_bytes(b"not an image")
    sh("llmuxctl", "checkpoint", OPT)
    assert "is taken anew: its file inventory.img is damaged" in journal(names.unit(OPT))
    assert complete(OPT).text
    assert "the restore failed" not in journal(names.unit(OPT))


def test_a_killed_server_comes_back_from_its_pristine_image() -> None:
    _pristine()
    sh("llmuxctl", "warmup", OPT)
    text = complete(OPT).text
    sh("podman", "kill", names.container(OPT))
    assert complete(OPT).text == text
    assert sh("busctl", "get-property", "org.llmux", names.object_path(OPT), "org.llmux.Model",
              "ActivatedBy") == 's "restore"'  # fmt: skip


@pytest.fixture
def volume() -> Iterator[Path]:
    """A directory that is not there while podman restores."""
    volume = Path("/srv/volume")
    volume.mkdir()
    podman = Path("/usr/local/sbin/podman")
    podman.write_text(
        f"""#!/bin/sh
[ "$2" = restore ] && [ -e {volume}/gone ] || exec /usr/bin/podman "$@"
rm -r {volume}
/usr/bin/podman "$@"
status=$?
mkdir {volume}
exit $status
"""
    )
    podman.chmod(0o755)
    yield volume
    podman.unlink()
    shutil.rmtree(volume, ignore_errors=True)


def test_a_cold_start_after_a_restore_that_failed_is_where_any_other_is(volume: Path) -> None:
    """CRIU restores no image of a container that is below the cgroup of podman's callers."""
    two_fakes(snapshot="pristine", volumes=[f"{volume}:/volume"])
    complete(OPT)
    sh("llmuxctl", "checkpoint", OPT)
    (volume / "gone").touch()
    complete(OPT)
    assert _run(OPT)["why_cold"].startswith("the restore failed: ")
    payload = Path(_run(OPT)["payload"])
    assert payload.parent.name == names.unit(OPT)
    below = [place.name for place in payload.parent.iterdir() if place.is_dir()]
    assert sorted(below) == [payload.name, "runtime"]
    sh("llmuxctl", "checkpoint", OPT)
    complete(OPT)
    assert _run(OPT)["way"] == "restore"


def test_a_wrong_canary_discards_the_checkpoint_and_starts_cold() -> None:
    _pristine()
    sh("llmuxctl", "warmup", OPT)
    told = record(OPT)
    assert json.loads(told["canary"])["text"]
    path = CHECKPOINTS / f"{names.slug(OPT)}.json"
    path.write_text(json.dumps(told | {"canary": '{"text": "!!!!"}'}), encoding="utf-8")
    assert complete(OPT).text
    said = journal(names.unit(OPT))
    assert "the restore failed: its canary says" in said and "serving after" in said
    assert "before the checkpoint" in record(OPT)["invalid"]
    sh("llmuxctl", "checkpoint", OPT)
    assert not record(OPT)["invalid"]


def test_a_canary_that_is_off_is_asked_of_nobody() -> None:
    _pristine(canary=False)
    sh("llmuxctl", "warmup", OPT)
    told = record(OPT)
    assert told["canary"] == ""
    # Nor is one that was recorded before it was turned off.
    path = CHECKPOINTS / f"{names.slug(OPT)}.json"
    path.write_text(json.dumps(told | {"canary": '{"text": "!!!!"}'}), encoding="utf-8")
    sh("llmuxctl", "switch", OPT)
    assert "cold start: the restore" not in journal(names.unit(OPT)) and not record(OPT)["invalid"]
    assert counter(OPT) == 0


def test_an_engine_without_completions_may_have_a_canary_of_its_own() -> None:
    asked = {"path": "/v1/embeddings", "body": {"model": OPT, "input": "one fixed text"}}
    _pristine(engine="generic", canary=asked)
    sh("llmuxctl", "warmup", OPT)
    told = record(OPT)
    # What it tells of itself was another already when it was asked a second time.
    assert set(json.loads(told["canary"])) == {"data"}
    sh("llmuxctl", "switch", OPT)
    assert "restore" in journal(names.unit(OPT)) and counter(OPT) == 2
    sh("systemctl", "stop", names.unit(OPT))
    answer = json.loads(told["canary"])
    answer["data"][0]["embedding"][3] += 0.1
    path = CHECKPOINTS / f"{names.slug(OPT)}.json"
    path.write_text(json.dumps(told | {"canary": json.dumps(answer)}), encoding="utf-8")
    sh("llmuxctl", "switch", OPT)
    said = journal(names.unit(OPT))
    assert "the restore failed: its canary says" in said and "cold start: the restore" in said
    assert counter(OPT) == 0 and not image(OPT).exists()
    assert "its canary says" in record(OPT)["invalid"]


def test_a_server_that_fails_its_canary_is_not_checkpointed() -> None:
    _pristine()
    assert complete(OPT).text
    _behave(OPT, status=500)
    _, said = fails("llmuxctl", "checkpoint", OPT)
    assert "it answers its canary with status 500" in said
    assert state(OPT) == "cold"


def test_without_room_for_an_image_nothing_is_written() -> None:
    _pristine(snapshot="live")
    sh("llmuxctl", "warmup", OPT)
    sh("llmuxctl", "switch", OPT)
    path = CHECKPOINTS / f"{names.slug(OPT)}.json"
    path.write_text(json.dumps(record(OPT) | {"size": 1 << 60}), encoding="utf-8")
    before = _files(OPT)
    sh("llmuxctl", "checkpoint", OPT)
    assert "has room for" in journal(names.unit(OPT))
    assert _files(OPT) == before
    assert complete(OPT).text


def test_no_more_images_are_kept_than_may_be() -> None:
    names_of = [OPT, QWEN, "third"]
    models = {name: {"args": ["--model", name]} for name in names_of}
    configure(models, top={"checkpoint_limit": 2})
    for name in names_of[:2]:
        assert complete(name).text
        sh("llmuxctl", "checkpoint", name)
    # Used after the other.
    sh("llmuxctl", "switch", OPT)
    sh("llmuxctl", "checkpoint", OPT)
    gone = image(QWEN)
    assert complete("third").text
    sh("llmuxctl", "checkpoint", "third")
    assert not gone.exists() and image(OPT).exists() and image("third").exists()
    assert [state(name) for name in names_of] == ["checkpointed", "cold", "checkpointed"]
    said = journal(names.unit("third"))
    assert f"removed the checkpoint of {QWEN}" in said and "its server had come to" in said
    assert complete(QWEN).text
    assert "checkpoint_limit is 2" in journal(names.unit(QWEN))
    configure(models, top={"checkpoint_space": "1kB"})
    _, said = fails("llmuxctl", "checkpoint", QWEN)
    assert "checkpoint_space is 0.0 GB" in said
    assert image(OPT).exists() and image("third").exists()


def test_no_more_is_kept_than_may_be() -> None:
    """In bytes: two images and a half."""
    names_of = [OPT, QWEN, "third"]
    models = {name: {"args": ["--model", name]} for name in names_of}
    configure(models)
    for name in names_of[:2]:
        assert complete(name).text
        sh("llmuxctl", "checkpoint", name)
    configure(models, top={"checkpoint_space": f"{record(OPT)['size'] * 5 // 2048}KiB"})
    gone = image(OPT)
    assert complete("third").text
    sh("llmuxctl", "checkpoint", "third")
    assert not gone.exists() and image(QWEN).exists() and image("third").exists()
    assert [state(name) for name in names_of] == ["cold", "checkpointed", "checkpointed"]
    assert "checkpoint_space is" in journal(names.unit("third"))


def test_images_may_lie_in_a_directory_of_their_own(tmpfs: Path) -> None:
    _pristine(checkpoint_dir=str(tmpfs))
    sh("mount", "-t", "tmpfs", "-o", "mode=0700,size=1g", "images", str(tmpfs))
    sh("llmuxctl", "warmup", OPT)
    place = tmpfs / names.container(OPT)
    assert image(OPT).resolve() == place and (place / "inventory.img").exists()
    assert complete(OPT).text
    assert "cold start" not in journal(names.unit(OPT)).replace("cold start: there is no", "")
    # It stays where it is for as long as it is good; the next one lies where it is to.
    _pristine()
    sh("llmuxctl", "checkpoint", OPT)
    assert image(OPT).resolve() == place
    sh("llmuxctl", "switch", OPT)
    sh("llmuxctl", "stop", OPT)
    assert list(tmpfs.iterdir()) == []
    sh("llmuxctl", "warmup", OPT)
    assert not image(OPT).is_symlink() and image(OPT).exists()


def test_a_directory_that_is_gone_means_a_cold_start(tmpfs: Path) -> None:
    sh("mount", "-t", "tmpfs", "-o", "mode=0700,size=1g", "images", str(tmpfs))
    _pristine(checkpoint_dir=str(tmpfs))
    sh("llmuxctl", "warmup", OPT)
    sh("umount", str(tmpfs))
    assert complete(OPT).text
    assert "the image is missing from" in journal(names.unit(OPT))
    sh("llmuxctl", "checkpoint", OPT)
    # The directory below the mount does as well.
    assert image(OPT).resolve().parent == tmpfs
    assert complete(OPT).text


def test_a_directory_that_cannot_be_used_is_said_to_be(tmpfs: Path) -> None:
    _pristine(checkpoint_dir=str(tmpfs))
    tmpfs.chmod(0o777)
    sh("llmuxctl", "warmup", OPT)
    assert f"others than root may write to {tmpfs}" in journal(names.unit(OPT))
    tmpfs.chmod(0o700)
    sh("mount", "-t", "tmpfs", "-o", "mode=0700,size=1m", "images", str(tmpfs))
    sh("llmuxctl", "warmup", QWEN)
    assert "it has 0.0 GB free" in journal(names.unit(QWEN))
    for name in (OPT, QWEN):
        assert not image(name).is_symlink() and complete(name).text


def test_the_image_of_a_model_that_left_the_configuration_goes() -> None:
    two_fakes()
    assert complete(OPT).text
    sh("llmuxctl", "checkpoint", OPT)
    directory = image(OPT)
    configure({QWEN: {"args": ["--model", QWEN]}})
    assert directory.exists()
    assert complete(QWEN).text
    eventually(lambda: not directory.exists(), "another model's start removes it")
    eventually(lambda: not list(CHECKPOINTS.glob("facebook*")), "and its record")
    assert sh("podman", "ps", "--all", "--quiet", "--filter", f"name={names.container(OPT)}") == ""
    assert complete(QWEN).text
