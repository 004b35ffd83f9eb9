# SPDX-License-Identifier: MIT
import errno
import os
from dataclasses import fields, replace
from pathlib import Path

import pytest

from llmuxd import files
from llmuxd.model import checkpoint
from llmuxd.model.checkpoint import Checkpoint, disk_usage
from llmuxd.model.identity import Identity

NAME = "Qwen/Qwen2.5-3B-Instruct"
HERE = Identity("d1", "i1", "m1", "6.18", "Version: 4.2.1", "580", "H100", "p", "c", "n", "4")


def record(directory: Path) -> Checkpoint:
    return Checkpoint(NAME, "c0ffee", 21005, HERE, 1.7e9 + 0.25, 4.5, 9_000_000_000, str(directory))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    (tmp_path / "image").mkdir()
    (tmp_path / "image" / "inventory.img").touch()
    return tmp_path / "image"


def test_round_trip(image: Path) -> None:
    whole = record(image)
    whole.save()
    assert Checkpoint.load(NAME) == whole
    assert Checkpoint.load("other") is None


def test_good_record_may_be_restored_here(image: Path) -> None:
    assert record(image).valid
    assert record(image).why_not(HERE) is None


@pytest.mark.parametrize(
    ("key", "word"),
    [
        ("definition", "definition"),
        ("image_id", "container image"),
        ("machine_id", "machine"),
        ("kernel", "kernel"),
        ("criu", "CRIU"),
        ("driver", "NVIDIA driver"),
        ("gpus", "GPUs"),
        ("plugin", "CUDA plugin"),
        ("cuda_checkpoint", "cuda-checkpoint"),
        ("cdi", "CDI"),
    ],
)
def test_each_part_of_the_identity_counts_and_is_named(image: Path, key: str, word: str) -> None:
    why = record(image).why_not(replace(HERE, **{key: "another"}))
    assert why is not None and word in why and why.endswith("changed")


def test_no_part_of_the_identity_is_forgotten(image: Path) -> None:
    for part in fields(Identity):
        assert record(image).why_not(replace(HERE, **{part.name: "another"})) is not None
    all_of_it = HERE.difference(Identity("", "", "", "", "", container_form=HERE.container_form))
    assert all_of_it is not None and all_of_it.count("changed") == len(fields(Identity)) - 1


def test_missing_image_is_no_checkpoint(image: Path) -> None:
    (image / "inventory.img").unlink()
    assert not record(image).valid
    assert record(image).why_not(HERE) == f"the image is missing from {image}"


def test_an_image_that_is_set_aside_for_the_next_one_is_not_gone(image: Path) -> None:
    image.rename(image.with_name("image.before"))
    assert record(image).valid and not record(image).whole
    image.mkdir()  # the next one has begun
    assert record(image).valid and not record(image).whole
    assert not record(image).invalidate("the restore failed").valid


def test_invalidated_record_keeps_its_reason(image: Path) -> None:
    marked = record(image).invalidate("the restore failed")
    assert not marked.valid
    assert Checkpoint.load(NAME) == marked
    assert marked.why_not(HERE) == "the restore failed"


def test_on_a_read_only_disk_a_record_stays_as_it_is(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(image).save()

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patched:
        patched.setattr(files, "write_json", refuse)
        patched.setattr(Path, "unlink", refuse)
        assert not record(image).invalidate("the restore failed").valid
    assert Checkpoint.load(NAME) == record(image)


def test_forgotten_is_gone_and_may_be_forgotten_again(image: Path) -> None:
    record(image).save()
    Checkpoint.forget(NAME)
    Checkpoint.forget(NAME)
    assert Checkpoint.load(NAME) is None


@pytest.mark.parametrize(
    "damage",
    [
        {"port": "many"}, {"identity": None}, {"identity": {"definition": "d"}},
        {"identity": {"definition": "d", "from": "the future"}}, {"size": "1.5"}, {"taken_at": []},
    ],
)  # fmt: skip
def test_damaged_record_is_no_record(image: Path, damage: dict[str, object]) -> None:
    record(image).save()
    (path,) = (files.state_root() / "checkpoints").iterdir()
    raw = files.read_json(path)
    assert raw is not None
    files.write_json(path, raw | damage)
    assert Checkpoint.load(NAME) is None


@pytest.mark.parametrize("key", ["model", "container_id", "port", "identity", "size", "directory"])
def test_record_that_lacks_a_key_is_no_record(image: Path, key: str) -> None:
    record(image).save()
    (path,) = (files.state_root() / "checkpoints").iterdir()
    raw = files.read_json(path)
    assert raw is not None
    del raw[key]
    files.write_json(path, raw)
    assert Checkpoint.load(NAME) is None


@pytest.fixture
def fine_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """As file systems in memory have them, whose tick is the kernel's: 10 ms at most."""
    monkeypatch.setattr(checkpoint, "TICK", 20_000_000)
    files.runtime_root().mkdir(parents=True)


def noted(good: Checkpoint) -> Checkpoint:
    """Once its files are as old as that takes."""
    while not [*files.runtime_root().iterdir()]:
        assert good.damage() is None
    return good


def test_what_was_written_just_now_is_read_again(image: Path) -> None:
    files.runtime_root().mkdir(parents=True)
    good = replace(record(image), manifest=checkpoint.manifest(image))
    assert good.damage() is None and not [*files.runtime_root().iterdir()]


@pytest.mark.usefixtures("fine_times")
def test_what_nobody_has_touched_is_not_read_again(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (image / "core-1.img").write_text("one")
    good = noted(replace(record(image), manifest=checkpoint.manifest(image)))
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "manifest", lambda _: pytest.fail("it was read"))
        assert good.damage() is None
    other = replace(good, manifest=good.manifest | {"core-1.img": "3 0123"})
    assert other.damage() == "its file core-1.img is damaged"
    assert good.damage() is None
    good.forget(good.model)
    assert not [*files.runtime_root().iterdir()]


@pytest.mark.usefixtures("fine_times")
@pytest.mark.parametrize("text", ["two", "three"])
def test_what_was_touched_is_read_whatever_its_times_say(image: Path, text: str) -> None:
    file = image / "core-1.img"
    file.write_text("one")
    good = noted(replace(record(image), manifest=checkpoint.manifest(image)))
    before = file.stat()
    file.write_text(text)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert good.damage() == "its file core-1.img is damaged"
    file.unlink()
    assert good.damage() == "its file core-1.img is missing"


def test_disk_usage_counts_what_sparse_files_hold(tmp_path: Path) -> None:
    folder = tmp_path / "image" / "deep"
    folder.mkdir(parents=True)
    with (folder / "pages.img").open("wb") as file:
        file.truncate(100 << 20)
        file.write(b"x" * 8192)
    assert 8192 <= disk_usage(tmp_path / "image") < 1 << 20
