# SPDX-License-Identifier: MIT
"""Puts the machine up on this host, from parts; each thing that is done is not done again."""

import shutil
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

from tests.machine import cache, cgroup, checkout, host, models, process, store, weights

from . import boot, driver, pack, userland

STATE = Path("/var/lib/llmux-gpu")
RESULTS = "/var/lib/llmux-results"
# 25 GB of images at a time may be dumped by hand: models are read from memory meanwhile.
MODELS = Path("/dev/shm/llmux-models")
MODELS_THERE = "/srv/models"
CHECKOUT = "usr/src/llmuxd"

_SETTLE = f"""
ldconfig
if ! [ -e /var/lib/llmux-compiled ]; then
    python3 -m compileall -qq -j 0 /usr/lib/python3 /usr/lib/python3.* > /dev/null 2>&1 || true
    touch /var/lib/llmux-compiled
fi
copy=$(mktemp -d /var/tmp/llmuxd.XXXXXX)
cp -a /{CHECKOUT}/. "$copy"
make -C "$copy" install DESTDIR= PREFIX=/usr
rm -rf "$copy"
systemctl daemon-reload
systemctl reload dbus.service
"""
# Of the whole host, so only where it is one with a GPU.
_NO_IO_URING = """
echo 'kernel.io_uring_disabled = 2' > /etc/sysctl.d/llmux.conf
sysctl -q -p /etc/sysctl.d/llmux.conf
"""


def up(parts: list[Path]) -> boot.Booted:
    """The machine, booted, with this checkout installed and both models' weights in reach."""
    running = boot.running()
    if running is not None:
        return running
    cgroup.remove(boot.NAME)
    with_gpu = driver.present()
    prepare(parts)
    root = _root(parts)
    stores = _images(parts, with_gpu=with_gpu)
    _files(root, list(stores))
    for name in ("containers", "results"):
        (STATE / name).mkdir(exist_ok=True)
    binds = {
        "/var/lib/containers": (STATE / "containers", ""),
        MODELS_THERE: (MODELS, "ro"),
        RESULTS: (STATE / "results", ""),
        **{f"{store.THERE}/{name}": (path, "ro") for name, path in stores.items()},
    }
    if with_gpu:
        binds |= driver.install(root)
        driver.write_cdi(root)
    with process.step("booting"):
        booted = boot.boot(root, binds, driver.nodes() if with_gpu else [])
    install(booted)
    if with_gpu:
        booted.shell(_NO_IO_URING)
    return booted


def install(booted: boot.Booted) -> None:
    """This checkout in the machine that is up, in the place of the one that it had."""
    place = STATE / "root" / CHECKOUT
    shutil.rmtree(place, ignore_errors=True)
    with tarfile.open(fileobj=BytesIO(checkout.archive())) as archive:
        archive.extractall(place, filter="fully_trusted")
    with process.step("make install in it"):
        booted.shell(_SETTLE)


def prepare(parts: list[Path]) -> None:
    """The weights, the root and the image, side by side; of these what parts are here for."""
    STATE.mkdir(parents=True, exist_ok=True)
    with_gpu = driver.present()
    acts: list[Callable[[], object]] = [
        lambda: _once("models", lambda: _weights(with_gpu=with_gpu))
    ]
    if pack.is_here("root", parts):
        acts.append(lambda: _root(parts))
    if with_gpu and pack.is_here("vllm", parts):
        acts.append(lambda: _images(parts, with_gpu=True))
    with ThreadPoolExecutor(len(acts)) as pool:
        for begun in [pool.submit(act) for act in acts]:
            begun.result()


def _root(parts: list[Path]) -> Path:
    root = STATE / "root"
    _once("root", lambda: pack.unpack("root", parts, root))
    return root


def _once(name: str, act: Callable[[], None]) -> None:
    """Do what was not done yet, or wait for whoever is at it; half of it is begun again."""
    mark = STATE / f".{name}"
    with cache.locked(STATE / f".{name}.lock"):
        if not mark.exists():
            act()
            mark.touch()


def _images(parts: list[Path], *, with_gpu: bool) -> dict[str, Path]:
    """The image stores; without a GPU those of the test machine, for a rehearsal."""
    if not with_gpu:
        entries = store.entries()
        return {name: entries[name].build() for name in ("vllm",)}
    place = STATE / "image"
    _once("image", lambda: pack.unpack("vllm", parts, place))
    _once("userland", lambda: userland.fill(place))
    return {"vllm-gpu": place}


def _weights(*, with_gpu: bool) -> None:
    shutil.rmtree(MODELS, ignore_errors=True)
    if with_gpu:
        weights.make_full(MODELS)
        return
    MODELS.mkdir()
    for entry in models.entries().values():
        for model in entry.build().iterdir():
            shutil.copytree(model, MODELS / model.name)


def _files(root: Path, stores: list[str]) -> None:
    """As machine.py has them."""
    files = {
        "etc/hostname": f"llmux-{boot.NAME}\n",
        "etc/hosts": f"127.0.0.1 localhost llmux-{boot.NAME}\n::1 localhost\n",
        "etc/containers/storage.conf": store.configuration(stores),
    }
    if host.hybrid_cgroups():
        files["etc/containers/containers.conf.d/hybrid.conf"] = "[containers]\npids_limit=0\n"
        crun = (root / "etc/criu/crun.conf").read_text()
        if "manage-cgroups" not in crun:
            files["etc/criu/crun.conf"] = crun + "manage-cgroups=ignore\n"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
