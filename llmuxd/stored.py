# SPDX-License-Identifier: MIT
"""The form of what is kept in /var/lib/llmux, and its way from one release to the next.

`form.json` says which form it is; where it is missing, it is the first. Whoever comes first after
an upgrade, llmuxd or a model's helper, brings an older one up to date, step by step. A newer one
both leave alone: what they do not understand they would take for nothing, and remove.

FORM is raised with each change that an older release would misread: a key that it may not ignore,
one that means something else, a file that it would remove. Another file, or a key that it may
ignore (it does, and whoever reads takes a missing one at its default), raises nothing, but is added
to the copy in tests/unit/forms, and the copy without it kept beside that. No key of an image's
identity may be ignored.
"""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from . import files, loggers
from .errors import StateNotKept, StateTooNew

log = loggers.named(__name__)

FORM = 2


def form() -> int:
    """Which one is there; StateTooNew where it is none of ours."""
    root = files.state_root()
    path = root / "form.json"
    if not path.exists():
        return 1 if root.is_dir() and any(root.iterdir()) else FORM
    return told_by(files.read_json(path), root)


def told_by(raw: Mapping[str, object] | None, root: Path) -> int:
    """The form that the content of a `form.json` in `root` tells; StateTooNew as `form`."""
    found = raw.get("form") if raw is not None else None
    if not isinstance(found, int) or not 1 <= found <= FORM:
        what = f"is of form {found}" if isinstance(found, int) else "does not tell its form"
        raise StateTooNew(f"the state in {root} {what}; this llmuxd knows 1 to {FORM}")
    return found


def bring_up_to_date() -> None:
    """Make it of this release's form; StateTooNew, or StateNotKept where that cannot be."""
    root = files.state_root()
    try:
        root.mkdir(mode=0o755, parents=True, exist_ok=True)
        with _alone_in(root):
            _bring_up_to_date(root)
    except OSError as error:
        raise StateNotKept(
            f"the state in {root} cannot be made of form {FORM}: {error.strerror or error}"
        ) from None


def _bring_up_to_date(root: Path) -> None:
    here = form()
    for number in range(here, FORM):
        log.info("bringing %s from form %d to %d", root, number, number + 1)
        STEPS[number](root)
        files.write_json(root / "form.json", {"form": number + 1})
    if not (root / "form.json").exists():
        files.write_json(root / "form.json", {"form": FORM})


@contextlib.contextmanager
def _alone_in(root: Path) -> Iterator[None]:
    """Several helpers may be the first at once."""
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _name_what_was_understood(root: Path) -> None:
    """To form 2: records say what form 1 left to its reader, or wrote only of late.

    A release that knows form 1 alone may ask another question than was asked when the image was
    taken, and leaves an image that lies elsewhere to nobody.
    """
    for path in sorted((root / "checkpoints").glob("*.json")):
        record = files.read_json(path)
        identity = record.get("identity") if record is not None else None
        if record is None or not isinstance(identity, dict):
            # What nobody could read before stays as it is.
            continue
        record = {
            "canary": "",
            "canary_prompt": "The quick brown fox jumps over the lazy",
            "question": None,
            "back": [],
            "slept_badly": False,
            "overslept": False,
            "live": False,
            "place": "",
            "invalid": "",
        } | record
        # Of which form of container it is nobody has written down.
        _rewrite(path, record | {"identity": {"container_form": ""} | identity})


def _rewrite(path: Path, value: Mapping[str, object]) -> None:
    """Replace a record that says something by its time too: when its image was used last."""
    used = path.stat()
    files.write_json(path, value, times=(used.st_atime_ns, used.st_mtime_ns))


# From each form the step to the next, in its directory. A step may be cut short, and is then done
# once more: its number is written when it is through.
STEPS: Mapping[int, Callable[[Path], None]] = {1: _name_what_was_understood}
