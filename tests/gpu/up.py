# SPDX-License-Identifier: MIT
"""Puts the machine up on this host, from parts; each thing that is done is not done again.

It boots while vLLM's image is still on its way: its store is a directory that fills meanwhile.
"""

import shutil
import sys
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

from tests.machine import cache, cgroup, checkout, host, models, process, store, weights

from . import boot, driver, pack, userland

STATE = Path("/var/lib/llmux-gpu")
IMAGE = STATE / "image"
RESULTS = "/var/lib/llmux-results"
# 25 GB of images at a time may be dumped by hand: models are read from memory meanwhile.
MODELS = Path("/dev/shm/llmux-models")
MODELS_THERE = "/srv/models"
CHECKOUT = "usr/src/llmuxd"
# The packages that are read ahead, in pieces of so many bytes.
_READ = ("torch", "triton", "nvidia", "transformers", "tokenizers", "numpy")
_PIECE = 8 << 20

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
    # Where one half was prepared and the other's parts are missing, this says so.
    prepare(parts, whole=running is None)
    return running or _machine(parts, with_gpu=driver.present())


def _machine(parts: list[Path], *, with_gpu: bool) -> boot.Booted:
    """Boot it, with this checkout installed; who comes second waits for the first."""
    root = _root(parts)
    with cache.locked(STATE / ".machine.lock"):
        running = boot.running()
        if running is not None:
            return running
        cgroup.remove(boot.NAME)
        stores = _stores(with_gpu=with_gpu)
        _files(root, list(stores))
        binds = {
            "/var/lib/containers": (STATE / "containers", ""),
            MODELS_THERE: (MODELS, "ro"),
            RESULTS: (STATE / "results", ""),
            **{f"{store.THERE}/{name}": (path, "ro") for name, path in stores.items()},
        }
        for place, _ in binds.values():
            place.mkdir(parents=True, exist_ok=True)
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


def prepare(parts: list[Path], *, whole: bool = False) -> None:
    """The weights, the machine and the image, side by side; of these what parts are here for.

    `whole`: all of them, which fails for parts that are missing.
    """
    STATE.mkdir(parents=True, exist_ok=True)
    with_gpu = driver.present()
    acts: list[Callable[[], object]] = [
        lambda: _once("models", lambda: _weights(with_gpu=with_gpu))
    ]
    if with_gpu:
        acts.append(lambda: _once("read", _read_ahead))
    if whole or pack.is_here("root", parts):
        acts.append(lambda: _machine(parts, with_gpu=with_gpu))
    if with_gpu and (whole or pack.is_here("vllm", parts)):
        acts.append(lambda: _image(parts))
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


def _stores(*, with_gpu: bool) -> dict[str, Path]:
    """The image stores; without a GPU those of the test machine, for a rehearsal."""
    if not with_gpu:
        entries = store.entries()
        return {name: entries[name].build() for name in ("vllm",)}
    return {"vllm-gpu": IMAGE}


def _image(parts: list[Path]) -> None:
    _once("image", lambda: pack.unpack("vllm", parts, IMAGE))
    _once("userland", lambda: userland.fill(IMAGE))


def _read_ahead() -> None:
    """The host's PyTorch and CUDA libraries, which the image's are links to, from their disk.

    On a fresh host that took 20 s of the first cold start.
    """
    with process.step("reading the host's PyTorch ahead"):
        found = Path(sys.prefix, "lib").glob("python3*/site-packages/*")
        for package in [path for path in found if path.name in _READ]:
            for path in [path for path in package.rglob("*") if path.is_file()]:
                with path.open("rb", buffering=0) as file:
                    while file.read(_PIECE):
                        pass


def _weights(*, with_gpu: bool) -> None:
    # Not the directory: the machine may have it already.
    MODELS.mkdir(exist_ok=True)
    for left in MODELS.iterdir():
        shutil.rmtree(left)
    if with_gpu:
        weights.make_full(MODELS)
        return
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
