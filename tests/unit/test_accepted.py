# SPDX-License-Identifier: MIT
from dataclasses import fields
from pathlib import Path

import pytest

from llmuxd import accepted, config, files
from llmuxd.errors import ConfigInvalid

GOOD = "models: {a: {image: i, env: {TOKEN: secret}}}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "llmux.yaml"
    path.write_text(GOOD, encoding="utf-8")
    return path


def test_units_read_what_was_accepted_and_not_what_the_file_says_by_then(file: Path) -> None:
    accepted.publish(config.load(file))
    file.write_text("models: [", encoding="utf-8")
    assert list(accepted.load().models) == ["a"]
    assert accepted.load().path == accepted.path() == file


def test_the_next_one_takes_its_place(file: Path) -> None:
    accepted.publish(config.load(file))
    file.write_text("models: {b: {image: i}}", encoding="utf-8")
    accepted.publish(config.load(file))
    assert list(accepted.load().models) == ["b"]


def test_without_llmuxd_the_file_counts(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accepted.publish(config.load(file))
    accepted.withdraw()
    accepted.withdraw()
    monkeypatch.setattr(accepted, "DEFAULT_PATH", file)
    file.write_text("models: {b: {image: i}}", encoding="utf-8")
    assert list(accepted.load().models) == ["b"]
    file.write_text("models: [", encoding="utf-8")
    with pytest.raises(ConfigInvalid):
        accepted.load()


def test_it_is_for_root_alone(file: Path) -> None:
    accepted.publish(config.load(file))
    copies = [each for each in files.runtime_root().iterdir() if not each.is_symlink()]
    assert sorted((each.name, oct(each.stat().st_mode & 0o777)) for each in copies) == [
        ("accepted.json", "0o600"),
        ("accepted.yaml", "0o600"),
    ]


def test_a_model_is_known_as_it_was_understood(tmp_path: Path) -> None:
    text = """
        defaults: {image: i, env: {TOKEN: secret}, gpus: [1]}
        models:
          plain: {}
          rich:
            args: [--model, rich]
            aliases: [r]
            engine: llama-server
            volumes: [/a:/b]
            checkpoint_dir: /srv/images
            snapshot: live
            canary: {path: /v1/embeddings, body: {input: hello}}
            tier: park
            image_sleep: "2"
            park_sleep: kv
            vram: 24GiB
            ttl: 60
            network: open
            devices: [nvidia.com/gpu=1]
            privileged: true
          bare: {canary: false, checkpoint: false}
          other: {engine: unit, unit: ollama.service}
        """
    path = tmp_path / "llmux.yaml"
    path.write_text(text, encoding="utf-8")
    loaded = config.load(path)
    accepted.publish(loaded)
    assert len(loaded.models) == 4
    for name, model in loaded.models.items():
        known = accepted.model(name)
        assert known == model
        assert known is not None and known.definition == model.definition
        for each in fields(model):
            assert type(getattr(known, each.name)) is type(getattr(model, each.name)), each.name


def test_nothing_is_known_of_another_text_or_release(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accepted.publish(config.load(file))
    assert accepted.model("a") is not None
    assert accepted.model("b") is None
    with monkeypatch.context() as patch:
        patch.setattr(accepted, "__version__", "0.0.1")
        assert accepted.model("a") is None
    (files.runtime_root() / "accepted.yaml").write_text("models: {a: {image: j}}")
    assert accepted.model("a") is None
    accepted.withdraw()
    assert accepted.model("a") is None


def test_what_cannot_be_kept_is_told(file: Path) -> None:
    (files.runtime_root() / "accepted.yaml.new").mkdir(parents=True)
    with pytest.raises(ConfigInvalid, match=r"accepted\.yaml: "):
        accepted.publish(config.load(file))
