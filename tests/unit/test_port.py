# SPDX-License-Identifier: MIT
import socket
from collections.abc import Iterator

import pytest

from llmuxd import files, names
from llmuxd.model import port


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def reserve(model: str, number: object) -> None:
    path = files.state_root() / "checkpoints" / f"{names.slug(model)}.json"
    files.write_json(path, {"model": model, "port": number})


def test_a_model_gets_the_same_port_each_time() -> None:
    assert port.choose("a/b") == port.choose("a/b")
    assert port.choose("a/b") != port.choose("a-b")


def test_ports_are_below_those_of_outgoing_connections() -> None:
    chosen = {port.choose(f"model-{number}") for number in range(100)}
    assert all(port.FIRST <= number < port.FIRST + port.COUNT for number in chosen)
    with open("/proc/sys/net/ipv4/ip_local_port_range") as file:
        first_outgoing = int(file.read().split()[0])
    assert first_outgoing >= port.FIRST + port.COUNT


def test_taken_port_is_passed_over() -> None:
    first = port.choose("a/b")
    with socket.create_server(("127.0.0.1", first)):
        assert not port.free(first)
        assert port.choose("a/b") == first + 1
    assert port.free(first)


def test_port_of_a_foreign_server_on_all_addresses_is_taken() -> None:
    with socket.create_server(("0.0.0.0", 0)) as sock:
        assert not port.free(sock.getsockname()[1])


def test_port_of_another_checkpoint_is_passed_over() -> None:
    first = port.choose("a/b")
    reserve("other", first)
    assert port.choose("a/b") == first + 1


def test_port_of_its_own_checkpoint_is_its_own() -> None:
    first = port.choose("a/b")
    reserve("a/b", first)
    assert port.choose("a/b") == first


def test_damaged_records_reserve_nothing() -> None:
    first = port.choose("a/b")
    reserve("other", str(first))
    (files.state_root() / "checkpoints" / "broken.json").write_text("{")
    assert port.choose("a/b") == first


def test_no_port_is_an_error_and_no_endless_search(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(port, "FIRST", listener.getsockname()[1])
    monkeypatch.setattr(port, "COUNT", 1)
    with pytest.raises(port.NoPort):
        port.choose("a/b")


def test_port_that_leads_elsewhere_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = port.choose("a")
    monkeypatch.setattr(port, "_refuses", lambda number: number != usual)
    assert not port.free(usual)
    assert port.choose("a") not in (usual,)
