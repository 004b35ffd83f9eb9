# SPDX-License-Identifier: MIT
"""What a start from an image needs once podman has restored it, and is loaded meanwhile.

Somebody waits for each module that is loaded before podman runs, and for none that is loaded beside
it: that takes longer, and the host has another processor. Until then each of these stands in its
place empty, and whoever uses it sooner, a cold start say, has it loaded by that.
"""

import sys
from importlib import import_module
from importlib.util import LazyLoader, find_spec, module_from_spec

MODULES = (
    "caches",
    "canary",
    "cgroup",
    "cuda_standby",
    "engine",
    "freezer",
    "imaging",
    "init",
    "keeping",
    "mirrored",
    "parking",
    "place",
    "resident",
    "seccomp",
    "server",
    "shortage",
    "signals",
    "tuning",
    "vllm",
)
# dataclasses imports it, and uses it for classes that have no docstring (Python 3.12 and 3.13: for
# each): with all that it brings along, half of what dataclasses takes to load.
SELDOM = "inspect"
# The health is asked for by the first two, and the first line is logged by the last: they take
# longer to load than all of these.
OTHERS = ("http.client", "encodings.idna", "llmuxd.journal")


def put_off() -> None:
    """Before anything that imports one of them as a module: `from . import canary`."""
    package = sys.modules[__package__]
    _put_off_by_name(SELDOM)
    for name in MODULES:
        spec = find_spec(f"{__package__}.{name}")
        assert spec is not None and spec.loader is not None
        spec.loader = LazyLoader(spec.loader)
        module = module_from_spec(spec)
        sys.modules[spec.name] = module
        setattr(package, name, module)
        spec.loader.exec_module(module)


def _put_off_by_name(name: str) -> None:
    """The same for `import name`, at which one of LazyLoader's would be loaded."""
    spec = find_spec(name)
    if name in sys.modules or spec is None or spec.loader is None:
        return
    loader, module = spec.loader, module_from_spec(spec)

    def load(attribute: str) -> object:
        del module.__getattr__
        loader.exec_module(module)
        return getattr(module, attribute)

    module.__getattr__ = load  # type: ignore[method-assign]
    sys.modules[name] = module


def load() -> None:
    """Load all of them that are not yet; no other thread may use one meanwhile (Python 3.11)."""
    for name in OTHERS:
        import_module(name)
    hasattr(import_module(SELDOM), "signature")
    for name in MODULES:
        # To ask for any attribute does it.
        hasattr(import_module(f".{name}", __package__), "__doc__")
