# SPDX-License-Identifier: MIT
from dataclasses import fields, replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from llmuxd import config
from llmuxd.config import Config, Engine, ModelConfig, Question, Reach, Sleep, Snapshot, Tier
from llmuxd.errors import ConfigInvalid, NoSuchModel

PATH = Path("llmux.yaml")
SAMPLE = """\
# /etc/llmux/llmux.yaml
defaults:
  image: docker.io/vllm/vllm-openai:v0.8.3
  gpus: [0]
  volumes: [/root/.cache/huggingface:/root/.cache/huggingface]
models:
  facebook/opt-125m:
    args: [--model, facebook/opt-125m, --max-model-len, "512"]
  Qwen/Qwen2.5-3B-Instruct:
    args: [--model, Qwen/Qwen2.5-3B-Instruct, --max-model-len, "512"]
    aliases: [qwen]
"""


def parse(text: str) -> Config:
    return config.parse(text, PATH)


def one(settings: str, defaults: str = "") -> ModelConfig:
    """The model `a` with these settings, in YAML's flow style."""
    text = f"defaults: {{image: i{', ' if defaults else ''}{defaults}}}\n"
    return parse(f"{text}models: {{a: {{{settings}}}}}\n").models["a"]


def refusal(text: str) -> str:
    with pytest.raises(ConfigInvalid) as caught:
        parse(text)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_the_sample_of_the_design() -> None:
    loaded = parse(SAMPLE)
    assert list(loaded.models) == ["facebook/opt-125m", "Qwen/Qwen2.5-3B-Instruct"]
    qwen = loaded.models["Qwen/Qwen2.5-3B-Instruct"]
    assert qwen == ModelConfig(
        name="Qwen/Qwen2.5-3B-Instruct",
        image="docker.io/vllm/vllm-openai:v0.8.3",
        args=("--model", "Qwen/Qwen2.5-3B-Instruct", "--max-model-len", "512"),
        volumes=("/root/.cache/huggingface:/root/.cache/huggingface",),
        gpus=(0,),
        aliases=("qwen",),
    )
    assert qwen.device_names == ("nvidia.com/gpu=0",)
    assert (loaded.max_body, loaded.path) == (32 << 20, PATH)


def test_the_shipped_file_is_the_sample() -> None:
    shipped = Path(__file__).parents[2] / "packaging" / "llmux.yaml"
    assert config.load(shipped).models == parse(SAMPLE).models


def test_a_model_overrides_the_defaults_key_by_key() -> None:
    model = one("gpus: [1], port: 9000", "gpus: [0], shm_size: 4g, env: {A: b}")
    assert (model.gpus, model.port, model.shm_size) == ((1,), 9000, "4g")
    assert model.env == (("A", "b"),)


def test_model_without_settings_of_its_own() -> None:
    assert parse("defaults: {image: i}\nmodels:\n  a:\n  b: {}\n").models == {
        "a": ModelConfig("a", "i"),
        "b": ModelConfig("b", "i"),
    }


def test_every_setting_can_be_written() -> None:
    model = one(
        "image: j, engine: llama-server, args: [x], env: {A: '1'}, volumes: [/a:/b],"
        "gpus: [2, 0], devices: [/dev/kfd], podman_args: [--init], aliases: [z], port: 1,"
        "health: /live, shm_size: 1g, start_timeout: 1.5, checkpoint: false,"
        "snapshot: live, checkpoint_dir: /srv/x, canary: false, canary_prompt: Once, tier: park,"
        "image_sleep: kv, park_sleep: 2,"
        "vram: 1.5GiB, pin: true, preload: true,"
        "priority: -2, max_wait: 3, min_active: 4, ttl: 5, queue_limit: 6, request_timeout: 7,"
        "drain_timeout: 8, served_name: w, privileged: true, read_only: true,"
        "network: private"
    )
    assert model == ModelConfig(
        "a", "j", Engine.LLAMA_SERVER, ("x",), (("A", "1"),), ("/a:/b",), (2, 0), ("/dev/kfd",),
        ("--init",), ("z",), 1, "/live", "1g", 1.5, checkpoint=False, snapshot=Snapshot.LIVE,
        checkpoint_dir="/srv/x",
        canary=False, canary_prompt="Once", tier=Tier.PARK,
        image_sleep=Sleep.KV, park_sleep=Sleep.LEVEL_2,
        vram=3 << 29, pin=True, preload=True, priority=-2,
        max_wait=3.0, min_active=4.0, ttl=5.0, queue_limit=6, request_timeout=7.0,
        drain_timeout=8.0, served_name="w",
        privileged=True, read_only=True, network=Reach.PRIVATE,
    )  # fmt: skip
    assert model.device_names == ("/dev/kfd",)
    defaults = ModelConfig("a", "i")
    never_set = {
        f.name for f in fields(model) if getattr(model, f.name) == getattr(defaults, f.name)
    }
    assert never_set <= {"name", "restore_timeout", "unit"}


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("20GiB", 20 << 30), ("800 MiB", 800 << 20), ("24GB", 24 * 10**9), ("1TiB", 1 << 40),
        ("0.5GB", 5 * 10**8), ("1kB", 1000), ("1KiB", 1024),
    ],
)  # fmt: skip
def test_sizes_have_units(written: str, meant: int) -> None:
    assert one(f"vram: {written}").vram == meant


def test_a_limit_of_the_defaults_can_be_taken_off_again() -> None:
    defaults = "ttl: 5, drain_timeout: 5, vram: 1GiB, min_active: 5"
    model = one("ttl: null, drain_timeout: ~, vram: null, min_active: 0", defaults)
    assert (model.ttl, model.drain_timeout, model.vram, model.min_active) == (None, None, None, 0)


def test_a_canary_may_be_a_request_of_its_own() -> None:
    asked = one("canary: {path: /v1/embeddings, body: {input: 'on', n: 1, on: [0.5, on, '1', ~]}}")
    assert asked.canary == Question(
        "/v1/embeddings", '{"input": "on", "n": 1, "on": [0.5, "on", "1", null]}'
    )
    assert one("canary: {path: /version}").canary == Question("/version")
    huge = "9" * 4000
    assert one(f"canary: {{path: /x, body: {{a: {huge}, b: 1e999, c: .5}}}}").canary == Question(
        "/x", f'{{"a": "{huge}", "b": "1e999", "c": ".5"}}'
    )


def test_a_model_may_be_another_unit() -> None:
    text = "engine: unit, unit: ollama@a.service, port: 11434, tier: park, vram: 8GiB"
    model = one(text, "args: [x], checkpoint: true, snapshot: live, ttl: 5")
    assert (model.unit, model.port, model.ttl) == ("ollama@a.service", 11434, 5.0)
    assert (model.image, model.args, model.checkpoint) == ("", (), False)


def test_the_queue_of_all_has_a_limit_of_its_own() -> None:
    loaded = parse("queue_limit: 7\ndefaults: {queue_limit: 3}\nmodels: {a: {image: i}}\n")
    assert (loaded.queue_limit, loaded.models["a"].queue_limit) == (7, 3)


def test_devices_may_be_none_at_all() -> None:
    assert one("devices: []").device_names == ()
    assert one("gpus: [0, 3]").device_names == ("nvidia.com/gpu=0", "nvidia.com/gpu=3")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("4000:01", "4000:01"), ("on", "on"), ("512", "512"), ("0x10", "0x10"), ("1e3", "1e3"),
        ("yes", "yes"), ("2024-01-01", "2024-01-01"), ("0.90", "0.90"), ("~x", "~x"),
        ('"~"', "~"), ('"null"', "null"), ("'a: b'", "a: b"), ("''", ""), ("=", "="),
    ],
)  # fmt: skip
def test_texts_stay_as_they_were_written(written: str, meant: str) -> None:
    assert one(f"args: [{written}]").args == (meant,)


def test_env_keeps_its_text_and_its_order() -> None:
    assert one("env: {Z: on, A: 010, M: 'x=y'}").env == (("Z", "on"), ("A", "010"), ("M", "x=y"))


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("models:\n  a:\n    image: i\n    agrs: [x]\n", "4:5", "did you mean 'args'?"),
        ("defualts:\n  image: i\nmodels: {a: {}}\n", "1:1", "did you mean 'defaults'?"),
        ("defaults: {imag: i}\nmodels: {a: {}}\n", "1:12", "did you mean 'image'?"),
        ("models: {a: {image: i, qqq: 1}}\n", "1:24", "known here: aliases, args"),
        ("defaults: {aliases: [x]}\nmodels: {a: {image: i}}\n", "1:12", "unknown key 'aliases'"),
        ("defaults: {name: x}\nmodels: {a: {image: i}}\n", "1:12", "unknown key 'name'"),
        ("models:\n  a: {image: i}\n  a: {image: j}\n", "3:3", "'a' stands twice"),
        ("models:\n  a: {image: i}\n  a: {image: j}\n", "3:3", "first in line 2"),
        ("models: {a: {image: i, port: 1, port: 2}}\n", "1:33", "'port' stands twice"),
        ("models: {a: {image: i, env: {A: x, A: y}}}\n", "1:36", "'A' stands twice in env"),
        ("models: {a: {image: i}}\nmodels: {b: {image: i}}\n", "2:1", "'models' stands twice"),
        ("models: {a: {image: i, args: --x}}\n", "1:30", "write args: [one, two]"),
        ("models: {a: {image: i, args: [[x]]}}\n", "1:31", "must be a text"),
        ("models: {a: {image: i, args: [~]}}\n", "1:31", "must be a text"),
        ("models: {a: {image: i, args: [\"a\\0\"]}}\n", "1:31", "NUL"),
        ("models: {a: {image: [i]}}\n", "1:21", "image must be a text"),
        ("models: {a: {image: i, gpus: 0}}\n", "1:30", "write gpus: [0]"),
        ("models: {a: {image: i, gpus: [-1]}}\n", "1:31", "whole number"),
        ("models: {a: {image: i, gpus: [0, 0]}}\n", "1:30", "twice"),
        ("models: {a: {image: i, port: 0}}\n", "1:30", "from 1 to 65535"),
        ("models: {a: {image: i, port: 65536}}\n", "1:30", "from 1 to 65535"),
        ("models: {a: {image: i, port: 4000:01}}\n", "1:30", "whole number, not '4000:01'"),
        ("models: {a: {image: i, port: 0x10}}\n", "1:30", "whole number"),
        ("models: {a: {image: i, port: ²}}\n", "1:30", "whole number"),
        ("models: {a: {image: i, port: " + "9" * 5000 + "}}\n", "1:30", "whole number"),
        ("models: {a: {image: i, checkpoint: on}}\n", "1:36", "true or false, not 'on'"),
        ("models: {a: {image: i, checkpoint: True}}\n", "1:36", "true or false, not 'True'"),
        ("models: {a: {image: i, start_timeout: soon}}\n", "1:39", "number of seconds, not 'soon'"),
        ("models: {a: {image: i, start_timeout: 0}}\n", "1:39", "number of seconds"),
        ("models: {a: {image: i, start_timeout: nan}}\n", "1:39", "number of seconds"),
        ("models: {a: {image: i, start_timeout: inf}}\n", "1:39", "number of seconds"),
        ("models: {a: {image: i, vram: 20}}\n", "1:30", "a size such as 20GiB"),
        ("models: {a: {image: i, vram: 40%}}\n", "1:30", "a size such as 20GiB"),
        ("models: {a: {image: i, vram: 0GiB}}\n", "1:30", "a size such as 20GiB"),
        ("models: {a: {image: i, vram: 0.0001kB}}\n", "1:30", "a size such as 20GiB"),
        ("models: {a: {image: i, priority: 1001}}\n", "1:34", "from -1000 to 1000"),
        ("models: {a: {image: i, priority: high}}\n", "1:34", "whole number"),
        ("models: {a: {image: i, max_wait: 0}}\n", "1:34", "number of seconds"),
        ("models: {a: {image: i, min_active: -1}}\n", "1:36", "number of seconds"),
        ("models: {a: {image: i, queue_limit: 0}}\n", "1:37", "1 or more"),
        ("models: {a: {image: i, canary: {body: {}}}}\n", "1:32", "canary has no 'path:'"),
        ("models: {a: {image: i, canary: {path: x}}}\n", "1:39", "must be a path such as"),
        ("models: {a: {image: i, canary: {path: '/a b'}}}\n", "1:39", "that no path has"),
        ("models: {a: {image: i, canary: {path: /x, bdy: 1}}}\n", "1:43", "mean 'body'?"),
        ("models: {a: {image: i, canary: {path: /x, body: {a: 1, a: 2}}}}\n", "1:56", "twice"),
        ("models: {a: {image: i, canary: {path: /x, body: &b [*b]}}}\n", "1:49", "more than 300"),
        ("models: {a: {image: i, canary: yes}}\n", "1:32", "true or false, not 'yes'"),
        ("models: {a: {image: i, checkpoint_dir: x}}\n", "1:40", "must be an absolute path"),
        ("models: {a: {image: i, checkpoint_dir: /a/../tmp}}\n", "1:40", "an absolute path"),
        ("models: {a: {image: i, checkpoint_dir: /tmp/x}}\n", "1:40", "must not be below /tmp"),
        ("models: {a: {engine: unit}}\n", "1:10", "engine: unit needs a 'unit:'"),
        ("models: {a: {image: i, unit: a.service}}\n", "1:30", "for engine: unit only"),
        ("models: {a: {engine: unit, unit: a.service, args: [x]}}\n", "1:51", "has none"),
        ("models: {a: {engine: unit, unit: a}}\n", "1:34", "a service such as"),
        ("models: {a: {engine: unit, unit: a@.service}}\n", "1:34", "a service such as"),
        ("models: {a: {engine: unit, unit: -x/a.service}}\n", "1:34", "a service such as"),
        ("models: {a: {engine: unit, unit: llmuxd.service}}\n", "1:34", "llmuxd's own"),
        ("models:\n  a: &a {engine: unit, unit: x.service}\n  b: *a\n", "2:30", "is 'a' already"),
        ("queue_limit: 0\nmodels: {a: {image: i}}\n", "1:14", "1 or more"),
        ("checkpoint_limit: 0\nmodels: {a: {image: i}}\n", "1:19", "1 or more"),
        ("checkpoint_space: 9\nmodels: {a: {image: i}}\n", "1:19", "a size such as 20GiB"),
        ("models: {a: {image: i, engine: vlm}}\n", "1:32", "did you mean 'vllm'?"),
        ("models: {a: {image: i, engine: zzz}}\n", "1:32", "llama-server"),
        ("models: {a: {image: i, health: health}}\n", "1:32", "a path such as /health"),
        ("models: {a: {image: i, env: [A]}}\n", "1:29", "env must be a mapping"),
        ("models: {a: {image: i, env: {'': x}}}\n", "1:30", "variable"),
        ("models: {a: {image: i, env: {A=B: x}}}\n", "1:30", "variable"),
        ("models: {a: {image: i, env: {\"A\\0\": x}}}\n", "1:30", "variable"),
        ("models: {a: x}\n", "1:13", "must be a mapping"),
        ("models: {a: {image: i}, b: {}}\n", "1:25", "model 'b' has no 'image:'"),
        ("models: {a: {}}\n", "1:10", "nor have the defaults"),
        ("defaults: {image: i}\n", "1:1", "there is no 'models:' section"),
        ("models:\n", "1:8", "models must be a mapping"),
        ("models: {}\n", "1:9", "lists no model"),
        ("models: [a]\n", "1:9", "models must be a mapping"),
        ("- a\n", "1:1", "the file must be a mapping"),
        ("models: {\"a\\nb\": {image: i}}\n", "1:10", "control character"),
        ("models: {'': {image: i}}\n", "1:10", "must not be empty"),
        ("models: {" + "x" * 300 + ": {image: i}}\n", "1:10", "too long"),
        ("models: {? [a] : {image: i}}\n", "1:12", "plain text"),
        ("models: {a: {image: i, aliases: [a]}}\n", "1:33", "'a' already names the model 'a'"),
        ("models: {a: {image: i, aliases: [x, x]}}\n", "1:33", "'x' already names the model 'a'"),
        ("models: {a: {image: i, aliases: [b]}, b: {image: i}}\n", "1:33", "names the model 'b'"),
        ("models:\n  a: {image: i, aliases: [x]}\n  b: {image: i, aliases: [x]}\n",
         "3:26", "'x' already names the model 'a'"),
        ("models: {a: {image: i, aliases: ['']}}\n", "1:33", "must not be empty"),
        ("max_body: 1\nmodels: {a: {image: i}}\n", "1:11", "1024 or more"),
        ("models:\n\ta: {image: i}\n", "2:1", "character"),
        ("models: {a: {image: i}\n", "2:1", "expected"),
        ("models: *x\n", "1:9", "undefined alias"),
        ("models: {a: {image: i}}\n---\nb\n", "2:1", "another document"),
        ("models:\n  e: {image: \x01}\n", "2:14", "control character"),
        ("models: &x {a: *x}\n", "1:13", "unknown key 'a' in model 'a'"),
    ],
)  # fmt: skip
def test_each_mistake_is_told_with_its_place(text: str, place: str, words: str) -> None:
    message = refusal(text)
    assert message.startswith(f"llmux.yaml:{place}: "), message
    assert words in message


@pytest.mark.parametrize("text", ["", "# nothing\n", "\n\n"])
def test_empty_file_says_what_it_needs(text: str) -> None:
    assert "models" in refusal(text)


@pytest.mark.parametrize("bracket", ["[", "{a: ", "- "])
def test_deep_nesting_is_refused_and_no_crash(bracket: str) -> None:
    assert refusal(bracket * 200_000).startswith("llmux.yaml:1")


def test_huge_file_is_refused() -> None:
    assert "MiB" in refusal("#" * (5 << 20))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="llmux.yaml: No such file or directory"):
        config.load(tmp_path / "llmux.yaml")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="Is a directory"):
        config.load(tmp_path)


def test_file_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "llmux.yaml").write_bytes(b"models: {\xe9: {image: i}}")
    with pytest.raises(ConfigInvalid, match="not valid UTF-8 at byte 9"):
        config.load(tmp_path / "llmux.yaml")


def test_load_reads_what_parse_reads(tmp_path: Path) -> None:
    (tmp_path / "llmux.yaml").write_text(SAMPLE, encoding="utf-8")
    assert config.load(tmp_path / "llmux.yaml").models == parse(SAMPLE).models


def test_resolves_names_and_aliases() -> None:
    loaded = parse(SAMPLE)
    assert loaded.aliases == {"qwen": "Qwen/Qwen2.5-3B-Instruct"}
    assert loaded.resolve("qwen") == "Qwen/Qwen2.5-3B-Instruct"
    assert loaded.resolve("facebook/opt-125m") == "facebook/opt-125m"


@pytest.mark.parametrize(
    ("asked", "hint"),
    [
        ("facebook/opt-124m", "did you mean 'facebook/opt-125m'?"),
        ("qwne", "did you mean 'qwen'?"),
        ("zzz", "GET /v1/models and 'llmuxctl status' list the models"),
    ],
)
def test_unknown_model_is_told_with_the_nearest(asked: str, hint: str) -> None:
    with pytest.raises(NoSuchModel) as caught:
        parse(SAMPLE).resolve(asked)
    assert hint in str(caught.value)


MODEL = ModelConfig("a", "i")
CHANGES: dict[str, object] = {
    "name": "b", "image": "j", "args": ("x",), "env": (("A", "b"),),
    "volumes": ("/a:/b",), "gpus": (1,), "devices": ("/dev/x",), "podman_args": ("--x",),
    "port": 1, "shm_size": "1g", "privileged": True, "read_only": False,
    "network": Reach.OPEN, "unit": "b.service",
}  # fmt: skip
KEPT: dict[str, object] = {
    "aliases": ("x",), "start_timeout": 1.0, "checkpoint": False, "health": "/live",
    "restore_timeout": 2.0, "engine": Engine.LLAMA_SERVER, "snapshot": Snapshot.LIVE,
    "canary": False, "canary_prompt": "x", "checkpoint_dir": "/x",
    "tier": Tier.PARK, "vram": 1, "pin": True, "preload": True, "priority": 1, "max_wait": 1.0,
    "min_active": 1.0, "ttl": 1.0, "queue_limit": 1, "request_timeout": 1.0, "drain_timeout": 1.0,
    "image_sleep": Sleep.LEVEL_1, "park_sleep": Sleep.OFF,
    "served_name": "z",
}  # fmt: skip


@pytest.mark.parametrize("key", CHANGES)
def test_what_makes_the_container_changes_its_definition(key: str) -> None:
    assert replace(MODEL, **{key: CHANGES[key]}).definition != MODEL.definition  # type: ignore[arg-type]


@pytest.mark.parametrize("key", KEPT)
def test_what_only_llmuxd_reads_does_not(key: str) -> None:
    assert replace(MODEL, **{key: KEPT[key]}).definition == MODEL.definition  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["image_sleep", "park_sleep"])
def test_dropping_the_kv_cache_alone_needs_another_container(key: str) -> None:
    drops = replace(MODEL, **{key: Sleep.KV})  # type: ignore[arg-type]
    assert drops.definition != MODEL.definition
    llama = replace(MODEL, engine=Engine.LLAMA_SERVER)
    assert replace(drops, engine=Engine.LLAMA_SERVER).definition == llama.definition


@pytest.mark.parametrize(
    ("settings", "read_only"),
    [
        ("engine: vllm", True),
        ("engine: llama-server", True),
        ("engine: vllm, read_only: false", False),
        ("engine: vllm, privileged: true", False),
        ("engine: vllm, privileged: true, read_only: true", True),
        ("engine: generic", False),
        ("engine: generic, read_only: true", True),
        ("engine: vllm, read_only: null", True),
    ],
)
def test_an_image_is_read_only_where_its_engine_is_known(settings: str, read_only: bool) -> None:
    assert one(settings).is_read_only is read_only


def test_what_an_image_is_by_itself_may_be_written_down() -> None:
    for engine, by_itself in (("vllm", "true"), ("generic", "false")):
        written = one(f"engine: {engine}, read_only: {by_itself}")
        assert written.definition == one(f"engine: {engine}").definition
    assert one("engine: vllm").definition != one("engine: generic").definition


def test_every_setting_is_on_one_side_or_the_other() -> None:
    assert {f.name for f in fields(ModelConfig)} == CHANGES.keys() | KEPT.keys()


def test_a_definition_has_one_form_and_outlives_new_keys() -> None:
    """The hash of a released form: a new key at its default must leave it as it is."""
    assert config.CONTAINER_FORM == 5
    digest = ModelConfig("facebook/opt-125m", "i", args=("--x",)).definition
    assert digest.startswith("817b1045aa10")


def test_texts_do_not_flow_into_each_other_in_the_definition() -> None:
    assert one("args: [a, b]").definition != one("args: ['a b']").definition
    assert one("args: ['512']").definition == one("args: [512]").definition


def test_devices_that_are_the_gpus_by_another_word_are_the_same() -> None:
    assert one("devices: ['nvidia.com/gpu=0']").definition == one("gpus: [0]").definition


_words = st.sampled_from(
    ["models", "defaults", "image", "args", "aliases", "a", "b", "gpus", "port", "env", ":", " ",
     "  ", "\n", "- ", "[", "]", "{", "}", ",", "&x", "*x", "!!int", "? ", "~", "\t", "0", "'",
     '"', "|", ">", "#", "%", "---", "...", "\x00", "\x85", "\ufeff", "é"]
)  # fmt: skip


@given(st.text() | st.lists(_words, max_size=40).map("".join))
def test_whatever_is_written_is_taken_or_refused(text: str) -> None:
    try:
        loaded = parse(text)
    except ConfigInvalid as error:
        assert str(error).startswith("llmux.yaml:")
    else:
        assert loaded.models


_values = st.recursive(
    st.text(max_size=4) | st.integers() | st.booleans() | st.none() | st.floats(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(sorted(CHANGES | KEPT)), inner, max_size=4)
    ),
    max_leaves=8,
)


_settings = st.dictionaries(st.sampled_from(sorted(CHANGES | KEPT)), _values)


@given(st.dictionaries(st.text(max_size=3), _settings, max_size=3))
def test_whatever_has_the_right_shape_is_taken_or_refused(models: dict[str, object]) -> None:
    text = yaml.safe_dump({"models": models}, allow_unicode=True)
    try:
        parse(text)
    except ConfigInvalid as error:
        assert str(error).startswith("llmux.yaml:")


def test_origins_are_as_browsers_send_them() -> None:
    text = "models: {a: {image: x}}\ncors_origins: "
    path = Path("llmux.yaml")
    wanted = ("https://chat.example:8443", "*")
    assert config.parse(f"{text}['https://chat.example:8443', '*']", path).cors_origins == wanted
    for wrong in ("https://chat.example/", "chat.example", "null", ""):
        with pytest.raises(ConfigInvalid, match="llmux.yaml:2:"):
            config.parse(f"{text}['{wrong}']", path)
