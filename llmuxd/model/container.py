# SPDX-License-Identifier: MIT
"""podman command lines for one model's container; the only file that knows podman's flags."""

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .. import files, loggers, names
from ..config import Engine, ModelConfig
from . import caches, init, seccomp, vllm
from .activation import conmon_pidfile
from .network import Network
from .process import CommandFailed, plain, run

log = loggers.named("llmux-model")

# A container's own end is bounded by podman's --time; these bound podman itself.
QUERY_TIMEOUT = 30.0
REMOVE_TIMEOUT = 60.0
RUN_TIMEOUT = 300.0
DUMP_TIMEOUT = 900.0
STOP_GRACE = 10
# CRIU's, beside the container's other files.
DUMP_LOG = "dump.log"
RESTORE_LOG = "restore.log"
# What podman and the kernel both take for a size.
_SHM_SIZE = r"([0-9]{1,15})([kKmMgG]?)[iI]?[bB]?"
_SHM = {"--ipc", "--shm-size", "--mount", "--tmpfs", "--volume", "-v"}
_INIT = {"--init", "--init=true", "--init=1", "--init=t", "--init=T", "--init=TRUE", "--init=True"}
# Who says one of these has thought about its first process himself.
_OWN_INIT = {"--init-path", "--pid", "--systemd"}
# How podman says that it has no such thing; it exits with 125 for any other trouble too.
_NO_IMAGE = ("image not known", "no such image")
_RUNS = "is running or paused"
_NO_NETWORK = ("network not found", "no such network")
# On a container and its network: the name of the model.
LABEL = "org.llmux.model"


@dataclass(frozen=True)
class Facts:
    """What podman says of a container. `userdata` is its own directory on disk."""

    id: str
    image_id: str
    running: bool
    pid: int
    conmon_pid: int
    userdata: Path

    @property
    def checkpoint_directory(self) -> Path:
        """Where podman puts, and looks for, the checkpoint of this container."""
        return self.userdata / "checkpoint"


class Container:
    """The container of one model, and the network that it alone is in."""

    def __init__(self, model: ModelConfig):
        self._model = model
        self.network = Network(model)
        self.name = names.container(model.name)

    def inspect(self) -> Facts | None:
        """Look it up; None where podman has no such container."""
        try:
            text = run(
                ["podman", "container", "inspect", "--format", "json", self.name], QUERY_TIMEOUT
            )
        except CommandFailed as error:
            # podman exits with 125 both for "no such container" and for real trouble.
            if "no such container" in error.reason:
                return None
            raise
        raw = json.loads(text)[0]
        state = raw["State"]
        return Facts(
            id=raw["Id"],
            image_id=raw["Image"],
            running=state["Status"] in ("running", "paused", "stopping"),
            pid=int(state.get("Pid") or 0),
            conmon_pid=int(state.get("ConmonPid") or 0),
            userdata=Path(raw["StaticDir"]),
        )

    def pids(self) -> tuple[int, int] | None:
        """Its first process and its conmon, as conmon has them; None where there is any doubt.

        podman takes 0.1 s to say the same.
        """
        try:
            conmon = int(conmon_pidfile(self._model.name).read_text(encoding="ascii"))
            name = Path(f"/proc/{conmon}/comm").read_text(encoding="ascii").strip()
            children = Path(f"/proc/{conmon}/task/{conmon}/children").read_text(encoding="ascii")
        except (OSError, ValueError):
            return None
        pids = [int(pid) for pid in children.split()]
        return (pids[0], conmon) if name == "conmon" and len(pids) == 1 else None

    def image_id(self) -> str:
        """The id of the image that a cold start would use; empty where it is not here yet."""
        try:
            return run(
                ["podman", "image", "inspect", "--format", "{{.Id}}", self._model.image],
                QUERY_TIMEOUT,
            ).strip()
        except CommandFailed as error:
            if any(words in error.reason for words in _NO_IMAGE):
                return ""
            raise

    def run(self, port: int) -> None:
        """Create and start it afresh, published on 127.0.0.1:`port`."""
        model = self._model
        network = self._make_network()
        argv = [
            "podman", "run", "--detach",
            "--name", self.name,
            "--label", f"{LABEL}={model.name}",
            # All of it, conmon included, stays in the unit's cgroup.
            "--cgroups=split",
            # The helper reports READY itself, after health; a restore never would.
            "--sdnotify=ignore",
            "--log-driver=journald",
            "--conmon-pidfile", str(conmon_pidfile(model.name)),
            "--publish", f"127.0.0.1:{port}:{model.port}",
        ]  # fmt: skip
        argv += self._shm() + self._locks() + self._init() + network
        for key, value in self._environment().items():
            argv += ["--env", f"{key}={value}"]
        for volume in self._volumes():
            argv += ["--volume", volume]
        for device in model.device_names:
            argv += ["--device", device]
        run([*argv, *model.podman_args, model.image, *self._arguments()], RUN_TIMEOUT)

    def _shm(self) -> list[str]:
        """Its /dev/shm, through which vLLM's processes talk; podman's 64 MB are too few.

        A tmpfs of its own, which CRIU writes with the holes left out. podman would copy what is in
        its own to the last zero, 400 MB of vLLM's ring buffers, and hold all of that in memory
        after each restore. Not with devices: that was tried with podman's only.
        """
        model = self._model
        size = re.fullmatch(_SHM_SIZE, model.shm_size)
        named = {word.partition("=")[0] for word in model.podman_args}
        if any("/dev/shm" in volume for volume in model.volumes):
            named.add("--volume")
        if size is None or model.device_names or named & _SHM:
            return ["--shm-size", model.shm_size]
        options = f"rw,nosuid,nodev,noexec,notmpcopyup,mode=1777,size={size[1]}{size[2].lower()}"
        return ["--ipc=none", f"--tmpfs=/dev/shm:{options}"]

    def _locks(self) -> list[str]:
        """What the container may not; config.CONTAINER_FORM counts the changes here."""
        model = self._model
        locks = ["--privileged"] if model.privileged else ["--security-opt=no-new-privileges"]
        profile = seccomp.profile()
        if profile is not None:
            locks.append(f"--security-opt=seccomp={profile}")
        if model.is_read_only:
            # podman puts a tmpfs on /run, /tmp and /var/tmp; CRIU dumps what is in it.
            locks.append("--read-only")
        return locks

    def _init(self) -> list[str]:
        """What has an init be its first process; `podman_args` come later, and have the last word.

        An image of another engine than vLLM may have one of its own, which has to be the first.
        """
        words = self._model.podman_args
        wanted = self._model.engine is Engine.VLLM or _INIT.intersection(words)
        if not wanted or _OWN_INIT.intersection(word.partition("=")[0] for word in words):
            return []
        path = init.path()
        return [] if path is None else ["--init", f"--init-path={path}"]

    def _environment(self) -> dict[str, str]:
        environment = dict(self._model.env)
        if self._model.drops_kv:
            # Before what the configuration or, where it says nothing, the image has there: podman
            # would put ours in its place.
            own = environment.get("PYTHONPATH")
            places = [vllm.MOUNTED, self._image_path() if own is None else own]
            environment["PYTHONPATH"] = ":".join(filter(None, places))
        return environment

    def _image_path(self) -> str:
        """Where the image has Python look for packages; empty where it does not say."""
        argv = ["podman", "image", "inspect", "--format", "{{json .Config.Env}}", self._model.image]
        try:
            text = run(argv, QUERY_TIMEOUT)
        except CommandFailed as error:
            if not any(words in error.reason for words in _NO_IMAGE):
                raise
            if self._model.podman_args:
                # They may say from where it comes, or that it may not; podman run has them.
                log.info("it is not known where its image has Python look: it is not here yet")
                return ""
            run(["podman", "pull", "--quiet", self._model.image], RUN_TIMEOUT)
            text = run(argv, QUERY_TIMEOUT)
        settings = dict(each.partition("=")[::2] for each in json.loads(text) or [])
        return str(settings.get("PYTHONPATH", ""))

    def _volumes(self) -> list[str]:
        extension = [f"{vllm.INSIDE}:{vllm.MOUNTED}:ro"]
        model = self._model
        kept = caches.volumes(model) if model.is_read_only else []
        return [*kept, *model.volumes, *(extension if model.drops_kv else [])]

    def _arguments(self) -> list[str]:
        extension = ["--worker-extension-cls", vllm.EXTENSION]
        return [*self._model.args, *(extension if self._model.drops_kv else [])]

    def restore(self, timeout: float, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Bring it back from its checkpoint, which stays on disk; `meanwhile` is done beside it."""
        argv = ["podman", "container", "restore", "--keep", "--tcp-established", self.name]
        try:
            self._run_criu(argv, timeout, RESTORE_LOG, meanwhile)
        except CommandFailed as error:
            if _RUNS not in error.reason:
                raise
            # It was started by hand, or ended without podman's knowledge.
            self.halt()
            self._run_criu(argv, timeout, RESTORE_LOG)

    def checkpoint(self, directory: Path) -> None:
        """Write it to disk and end it; podman writes to `directory`, its checkpoint directory.

        An old image is removed first: CRIU writes over the files in place, and what it does
        not write again would stay and mix with the new ones.
        """
        empty_directory(directory)
        argv = ["podman", "container", "checkpoint", "--tcp-established", self.name]
        self._run_criu(argv, DUMP_TIMEOUT, DUMP_LOG)

    def _run_criu(
        self,
        argv: list[str],
        timeout: float,
        log_name: str,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> None:
        """Run a command that runs CRIU; its failure is told in CRIU's words, podman has none."""
        begin = time.time()
        try:
            run(argv, timeout, meanwhile=meanwhile)
        except CommandFailed as error:
            cause = _criu_error(self._criu_log(log_name, begin))
            if cause:
                raise CommandFailed(argv, error.status, f"CRIU: {cause}") from None
            raise

    def said_since(self, begin: float) -> str:
        """What CRIU, at a restore, and the server have written since then, in Unix time.

        Of CRIU's the errors, and what its CUDA plugin tells: that is no error to CRIU.
        """
        argv = ["podman", "logs", "--since", f"{begin:.3f}", self.name]
        try:
            said = run(argv, QUERY_TIMEOUT, merge=True)
        except CommandFailed as error:
            said = error.reason
        criu = self._criu_log(RESTORE_LOG, begin).splitlines()
        told = [line for line in criu if "Error " in line or "cuda" in line]
        return "\n".join([*told, said])

    def _criu_log(self, log_name: str, begin: float) -> str:
        """What CRIU has written since then; empty where it has not even begun."""
        try:
            facts = self.inspect()
            path = facts.userdata / log_name if facts else None
            if path is None or path.stat().st_mtime < begin:
                return ""
            return path.read_text(encoding="utf-8", errors="replace")
        except (CommandFailed, OSError):
            return ""

    def stop(self) -> None:
        """End it, politely for a while; it may be started or restored no more."""
        run(["podman", "stop", "--ignore", "--time", str(STOP_GRACE), self.name], REMOVE_TIMEOUT)
        self.remove()

    def kill(self) -> None:
        """End it at once; it and its checkpoint are kept."""
        run(["podman", "stop", "--ignore", "--time", "0", self.name], REMOVE_TIMEOUT)

    def halt(self) -> None:
        """The same for one whose end podman may have missed: no network or mount of it is left."""
        try:
            self.kill()
        except CommandFailed as error:
            # `conmon exited prematurely`, say: from here on podman knows that it has ended.
            log.info("%s", error)
        run(["podman", "container", "cleanup", self.name], REMOVE_TIMEOUT)

    def remove(self) -> None:
        """Make it not exist, whatever state it is in; its checkpoint and its network go with it."""
        argv = ["podman", "rm", "--force", "--ignore", "--volumes", "--time", "0", self.name]
        try:
            run(argv, REMOVE_TIMEOUT)
        except CommandFailed as error:
            # Where podman's own clean-up was killed half-way, the first attempt stumbles over what
            # is gone already, and does the rest all the same.
            log.warning("%s", error)
            run(argv, REMOVE_TIMEOUT)
        self.remove_network()

    def _make_network(self) -> list[str]:
        """Make its network; what podman run is to be given for it."""
        if not self.network.is_ours:
            return []
        argv = [
            "podman", "network", "create",
            "--label", f"{LABEL}={self._model.name}",
            # network.nft closes it by this name; a podman older than 4.5 cannot give one, and no
            # model starts there.
            "--interface-name", self.network.bridge,
            # No packet goes from one such network to another.
            "--opt", "isolate=true",
            # There is nobody in it to be found by name, and podman's server of names would stay
            # in the unit's cgroup. The host's own servers are asked.
            "--disable-dns",
            self.name,
        ]  # fmt: skip
        try:
            run(argv, QUERY_TIMEOUT)
        except CommandFailed as error:
            if "already exists" not in error.reason:
                raise
            # Left by one that was cut short, and perhaps with another reach.
            self.remove_network()
            run(argv, QUERY_TIMEOUT)
        return [f"--network={self.name}"]

    def remove_network(self) -> None:
        """Make its network not exist; the container does not any more."""
        try:
            run(["podman", "network", "rm", self.name], QUERY_TIMEOUT)
        except CommandFailed as error:
            if not any(words in error.reason for words in _NO_NETWORK):
                # Nothing of the model's is in it; its next start removes it.
                log.warning("its network stays: %s", error)

    def last_words(self) -> str:
        """The last line that the server wrote, one line; empty where there is none."""
        try:
            lines = run(["podman", "logs", "--tail", "5", self.name], QUERY_TIMEOUT, merge=True)
        except CommandFailed:
            return ""
        written = [line for raw in lines.splitlines() if (line := plain(raw).strip())]
        return written[-1][:300] if written else ""


def network_owners() -> list[str]:
    """The models that have a network."""
    argv = ["podman", "network", "ls", "--filter", f"label={LABEL}", "--format", "json"]
    found = json.loads(run(argv, QUERY_TIMEOUT) or "[]")
    return [str(network["labels"][LABEL]) for network in found]


def remove_all() -> None:
    """Make no model's container exist, nor an image that podman keeps, nor a network of theirs."""
    ours = ("--quiet", "--filter", f"label={LABEL}")
    containers = run(["podman", "ps", "--all", *ours], QUERY_TIMEOUT).split()
    if containers:
        argv = ["podman", "rm", "--force", "--ignore", "--volumes", "--time", "0", *containers]
        run(argv, REMOVE_TIMEOUT)
    networks = run(["podman", "network", "ls", *ours], QUERY_TIMEOUT).split()
    if networks:
        run(["podman", "network", "rm", *networks], REMOVE_TIMEOUT)


def _criu_error(log_text: str) -> str:
    """The first error in one of CRIU's logs: those after it are what it led to."""
    # "(00.042017) Error (criu/files-reg.c:1234): what happened"
    errors = [line.partition("Error ")[2] for line in log_text.splitlines() if "Error " in line]
    telling = [line for line in errors if "RLIMIT_NOFILE" not in line]
    return telling[0][:300] if telling else ""


def empty_directory(directory: Path) -> None:
    """Remove what is in `directory`, not the directory: it may be a mount point."""
    if not directory.is_dir():
        return
    for entry in directory.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            files.remove_tree(entry)
        else:
            entry.unlink()
