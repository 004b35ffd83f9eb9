# SPDX-License-Identifier: MIT
"""llmuxctl config check and config show: what llmux.yaml says, and what follows from it."""

import argparse
import asyncio
import json
from dataclasses import fields
from enum import StrEnum
from pathlib import Path

import yaml

from .. import accepted, config, llmux_yaml
from ..errors import ConfigInvalid
from .exits import Exit
from .models import print_json


async def check(arguments: argparse.Namespace) -> int:
    """Read the file as llmuxd would, and say what is wrong."""
    path = _path(arguments)
    try:
        loaded = await asyncio.to_thread(config.load, path)
    except ConfigInvalid as error:
        if not arguments.json:
            raise
        print_json({"file": str(path), "valid": False, "models": 0, "error": str(error)})
        return Exit.USAGE
    if arguments.json:
        found = {"file": str(path), "valid": True, "models": len(loaded.models), "error": ""}
        print_json(found)
    else:
        print(f"{path}: good, {len(loaded.models)} models")
    return Exit.DONE


async def show(arguments: argparse.Namespace) -> int:
    """Each model with every key, defaults filled in; as YAML that llmuxd would take again."""
    loaded = await asyncio.to_thread(_in_force, arguments.config)
    effective = _effective(loaded)
    if arguments.json:
        print_json(effective)
    else:
        print(yaml.safe_dump(effective, sort_keys=False, allow_unicode=True), end="")
    return Exit.DONE


def _path(arguments: argparse.Namespace) -> Path:
    given: Path | None = arguments.config
    return given or accepted.path()


def _in_force(given: Path | None) -> config.Config:
    """What llmuxd has accepted; the file where one is given, or no llmuxd runs, or only root may
    see what it accepted.
    """
    return config.load(given) if given else accepted.load()


def _effective(loaded: config.Config) -> dict[str, object]:
    rest = {
        each.name: _plain(getattr(loaded, each.name))
        for each in fields(loaded)
        if each.name not in ("path", "text", "models")
    }
    return {"models": {name: _model(each) for name, each in loaded.models.items()}, **rest}


def _model(model: config.ModelConfig) -> dict[str, object]:
    values = {each.name: _plain(getattr(model, each.name)) for each in fields(model)}
    values |= {"env": dict(model.env), "devices": list(model.device_names)}
    values["checkpoint_dir"] = model.checkpoint_dir or None
    left_out = {"name"} | (llmux_yaml.OF_CONTAINER if model.unit else {"unit"})
    return {key: value for key, value in values.items() if key not in left_out}


def _plain(value: object) -> object:
    """A value as YAML and JSON have it."""
    match value:
        case StrEnum():
            return value.value
        case config.Question():
            return {"path": value.path} | ({"body": json.loads(value.body)} if value.body else {})
        case tuple():
            return [_plain(each) for each in value]
        case _:
            return value
