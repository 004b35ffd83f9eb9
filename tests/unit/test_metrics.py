# SPDX-License-Identifier: MIT
"""What Prometheus is told, read by Prometheus' own parser."""

import asyncio
import json

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from llmuxd import metrics
from llmuxd.costs import Cost
from llmuxd.gpus import Gpus
from llmuxd.meter.reading import GpuMemory, Holder, Reading
from llmuxd.metrics import engines, lag, observed
from llmuxd.model.checkpoint import Checkpoint
from llmuxd.proxy import usage
from llmuxd.switcher import pauses

from .fake_units import DOWN
from .house import ASK, CHAT, House

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]

VLLM = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a"} 2.0
# HELP vllm:prompt_tokens_total Number of prefill tokens processed.
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{engine="0"} 17.0
# TYPE vllm:prompt_tokens_created gauge
vllm:prompt_tokens_created{engine="0"} 1.7e+09
# TYPE vllm:ttft histogram
vllm:ttft_bucket{le="0.5"} 1.0
vllm:ttft_bucket{le="+Inf"} 2.0
vllm:ttft_count 2.0
vllm:ttft_sum 1.5
# TYPE process_cpu_seconds_total counter
process_cpu_seconds_total 3.5
"""


def read(text: str) -> Samples:
    """Every sample by its name and labels; the parser itself refuses what is no OpenMetrics."""
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found, key
            found[key] = sample.value
    return found


async def scrape(house: House) -> Samples:
    async with house.client.get(house.url + "/metrics") as response:
        assert response.status == 200
        assert response.headers["Content-Type"].startswith("application/openmetrics-text")
        return read((await response.read()).decode())


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, tuple(sorted(labels.items()))]


async def test_requests_are_counted_by_model_route_and_status(house: House) -> None:
    await house.post()
    await house.post({"model": "first"})
    await house.post({"model": "made up"})
    await house.post(b"{")
    await house.post(path="/nowhere/at/all")
    seen = await scrape(house)
    ok = {"model": "org/a", "route": CHAT, "code": "200"}
    assert value(seen, "llmux_requests_total", **ok) == 2
    assert value(seen, "llmux_requests_total", model="", route=CHAT, code="404") == 1
    assert value(seen, "llmux_requests_total", model="", route=CHAT, code="400") == 1
    assert value(seen, "llmux_requests_total", model="", route="other", code="404") == 1
    for name in ("request", "wait", "first_byte"):
        assert value(seen, f"llmux_{name}_seconds_count", model="org/a") == 2
    assert "made up" not in str(seen) and "nowhere" not in str(seen)


async def test_wait_and_stream_are_measured(house: House) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(3):
            await response.write(b"data: {}\n\n")
            await asyncio.sleep(0.03)
        await response.write(b'data: {"usage": {"prompt_tokens": 5, "completion_tokens": 7}}\n\n')
        return response

    house.engine.answer = answer
    gate = house.stage.units.hold("start", "org/a")

    async def ask() -> None:
        async with house.client.post(house.url + CHAT, json=ASK) as response:
            await response.read()

    task = asyncio.create_task(ask())
    await gate.reached.wait()
    await asyncio.wait([task], timeout=0.1)
    seen = await scrape(house)
    assert value(seen, "llmux_queue_length") == value(seen, "llmux_queued", model="org/a") == 1
    assert value(seen, "llmux_model_state", model="org/a", state="starting") == 1
    gate.open()
    await task
    seen = await scrape(house)
    assert value(seen, "llmux_wait_seconds_sum", model="org/a") >= 0.1
    assert value(seen, "llmux_chunk_gap_seconds_count", model="org/a") == 3
    assert value(seen, "llmux_chunk_gap_seconds_sum", model="org/a") >= 0.08
    assert value(seen, "llmux_tokens_total", model="org/a", kind="prompt") == 5
    assert value(seen, "llmux_tokens_total", model="org/a", kind="completion") == 7
    assert value(seen, "llmux_model_state", model="org/a", state="serving") == 1
    assert value(seen, "llmux_queue_length") == 0


async def test_client_that_left_is_counted(house: House) -> None:
    asked = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    house.engine.answer = answer
    task = asyncio.create_task(house.post())
    await asked.wait()
    task.cancel()
    await house.engine.gone.wait()
    await house.idle()
    seen = await scrape(house)
    assert value(seen, "llmux_requests_total", model="org/a", route=CHAT, code="499") == 1


async def test_moves_and_failures_are_counted(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pauses, "COOL_DOWN", (0.02, 60.0))
    await house.post()
    await house.post({"model": "b"})
    house.stage.units.break_verb("start", "org/a")
    await house.post()
    seen = await scrape(house)
    assert value(seen, "llmux_move_seconds_count", model="org/a", phase="cold") == 1
    assert value(seen, "llmux_move_seconds_count", model="org/a", phase="out") == 1
    assert value(seen, "llmux_failed_starts_total", model="org/a") == 2


async def failed_moves(house: House) -> dict[tuple[str, str], float]:
    """What is not 0 of them, by model and phase."""
    return {
        (dict(pairs)["model"], dict(pairs)["phase"]): count
        for (name, pairs), count in (await scrape(house)).items()
        if name == "llmux_failed_moves_total" and count
    }


async def test_ways_that_failed_are_counted_by_way(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pauses, "COOL_DOWN", (0.02, 60.0))
    monkeypatch.setattr(pauses, "LEAVE_AGAIN", 0.02)
    house.stage.units.break_verb("stop", "org/a", times=1)
    await house.post()
    await house.post({"model": "b"})
    assert await failed_moves(house) == {("org/a", "out"): 1}
    # It has left a checkpoint, and starts cold all the same.
    await house.post()
    assert await failed_moves(house) == {("org/a", "out"): 1, ("org/a", "restore"): 1}
    house.stage.units.break_verb("start", "b", times=1)
    await house.post({"model": "b"})
    assert (await failed_moves(house))["b", "restore"] == 2


async def test_leaving_without_a_checkpoint_is_a_failure(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpoint, "save", lambda record: None)
    await house.post()
    await house.post({"model": "b"})
    assert await failed_moves(house) == {("org/a", "out"): 1}


async def test_park_that_fails_is_counted(house: House) -> None:
    await house.post()
    house.stage.units.break_verb("reload", "org/a", times=1)
    job = house.stage.switcher.park("org/a")
    await house.stage.result(job)
    assert await failed_moves(house) == {("org/a", "park"): 1}


async def test_engines_own_metrics_come_with_the_models_name(house: House) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(text=VLLM if request.path == "/metrics" else "{}")

    house.engine.answer = answer
    seen = await scrape(house)
    assert not any(name.startswith("vllm") for name, _ in seen)
    assert house.engine.seen == []
    await house.post()
    seen = await scrape(house)
    running = {"model": "org/a", "engine": "0", "model_name": "a"}
    assert value(seen, "vllm:num_requests_running", **running) == 2
    assert value(seen, "vllm:prompt_tokens_total", model="org/a", engine="0") == 17
    assert value(seen, "vllm:ttft_bucket", model="org/a", le="+Inf") == 2
    assert value(seen, "process_cpu_seconds_total", model="org/a") == 3.5


async def test_engine_that_does_not_answer_costs_the_others_nothing(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "TIMEOUT", 0.05)

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path == "/metrics":
            await asyncio.Event().wait()
        return web.Response(text="{}")

    house.engine.answer = answer
    await house.post()
    assert value(await scrape(house), "llmux_in_flight", model="org/a") == 0


@pytest.mark.parametrize(
    "text",
    [
        "", "nonsense", "# TYPE", "x{", "x 1\nx 2 3 4", "llmux_requests_total 5", "a{b=} 1",
        "x nan nan", "# TYPE x counter\nx 1", "# TYPE y gauge\ny{model=\"q\",a=\"b\"} 1 1700000",
        "# TYPE z histogram\nz_bucket{le=\"1\"} 0\nz_bucket{le=\"+Inf\"} 0\nz_count 0\nz_sum 0",
        "\0\0\0", "x 1e5\n\n# EOF\nx2 2",
    ],
)  # fmt: skip
def test_whatever_an_engine_says_the_page_stays_readable(text: str) -> None:
    merged = engines.Pages()
    merged.add("a", text)
    merged.add('b"\\', text)
    read(merged.text() + "# EOF\n")


_names = st.sampled_from(["x", "x_total", "x_count", "x_sum", "x_created", "y", "llmux_a"])
_kinds = st.sampled_from(["counter", "gauge", "untyped", "unknown", "info", "stateset"])
_labels = st.sampled_from(
    [
        "", '{model="q"}', '{model="q",exported_model="z"}', '{exported_model="q"}',
        '{a="1",b="2"}', '{b="2",a="1"}', '{a="1",a="2"}', '{a="\\n\\"x,model=\\""}',
        '{a="\u2028x 1"}', '{a="1"',
    ]
)  # fmt: skip
_lines = (
    st.builds("# TYPE {} {}".format, _names, _kinds)
    | st.builds("# HELP {} {}".format, _names, st.sampled_from(["a", 'q"', "b\\", "\\n"]))
    | st.builds("{}{} {}".format, _names, _labels, st.sampled_from(["1", "2.0", "1e3", "+Inf"]))
)


@given(st.lists(st.lists(_lines, max_size=6), min_size=1, max_size=3))
def test_engines_that_use_each_others_names_leave_the_page_readable(pages: list[list[str]]) -> None:
    merged = engines.Pages()
    for number, lines in enumerate(pages):
        merged.add(f"m{number}", "\n".join(lines))
    read(merged.text() + "# EOF\n")


def test_numbers_in_labels_are_written_as_openmetrics_has_them() -> None:
    merged = engines.Pages()
    merged.add(
        "a", '# TYPE z histogram\nz_bucket{le="1"} 0\nz_bucket{le="+Inf"} 0\nz_count 0\nz_sum 0'
    )
    seen = read(merged.text() + "# EOF\n")
    assert value(seen, "z_bucket", model="a", le="1.0") == 0


def test_separators_of_other_kinds_end_no_line() -> None:
    merged = engines.Pages()
    merged.add("a", '# TYPE y gauge\r\ny{q="\u2028\x85"} 1\r\n')
    assert value(read(merged.text() + "# EOF\n"), "y", model="a", q="\u2028\x85") == 1


async def test_engine_with_an_endless_page_costs_the_others_nothing(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "MAX_SIZE", 100_000)

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.path != "/metrics":
            return web.Response(text="{}")
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x 1\n" * 1000)

    house.engine.answer = answer
    await house.post()
    seen = await scrape(house)
    assert value(seen, "llmux_in_flight", model="org/a") == 0
    assert ("x", (("model", "org/a"),)) not in seen
    await house.engine.gone.wait()


def test_label_that_an_engine_has_already_is_kept() -> None:
    merged = engines.Pages()
    merged.add("a", '# TYPE y gauge\ny{model="q",submodel="r"} 1\n')
    assert read(merged.text() + "# EOF\n") == {
        ("y", (("exported_model", "q"), ("model", "a"), ("submodel", "r"))): 1.0
    }


def test_memory_of_the_gpus_is_told(house: House) -> None:
    gpus = Gpus()
    holders = (Holder(1, "vllm", "org/a", 5 << 30),)
    gpus._reading = Reading(0.0, (GpuMemory(0, "H100", 80 << 30, 6 << 30, holders),))
    families = observed.look(house.stage.switcher, gpus).families()
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }
    assert found["llmux_model_gpu_bytes", "org/a", "0"] == 5 << 30
    assert found["llmux_gpu_used_bytes", "0"] == 6 << 30


async def test_lag_of_the_loop_is_seen(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lag, "INTERVAL", 0.01)
    counts = metrics.Counts()
    looker = metrics.Lag(counts.lag)
    looker.start()
    await asyncio.sleep(0.05)
    import time

    time.sleep(0.2)  # noqa: ASYNC251 - the very thing that is to be seen
    await asyncio.sleep(0.05)
    looker.stop()
    buckets = {
        s.labels["le"]: s.value for f in counts.lag.collect() for s in f.samples if "le" in s.labels
    }
    assert buckets["+Inf"] > buckets["0.1"] > 0


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ({"usage": {"prompt_tokens": 5, "completion_tokens": 7}}, (5, 7)),
        ({"usage": {"input_tokens": 5, "output_tokens": 7}, "x": "y" * 3000}, (5, 7)),
        ({"content": '"usage": {"completion_tokens": 9}'}, (0, 0)),
        ({"usage": None}, (0, 0)),
        ({"usage": {"completion_tokens": 7}, "x": "y" * 5000}, (0, 7)),
        ([{"usage": {"output_tokens": 1}}, {"usage": {"output_tokens": 2}}], (0, 2)),
    ],
)
def test_tokens_are_found_wherever_the_answer_tells_them(
    answer: object, wanted: tuple[int, int]
) -> None:
    text = json.dumps(answer).encode()
    for size in (1, 7, 100_000):
        tail = usage.Tail()
        for start in range(0, len(text), size):
            tail.add(text[start : start + size])
        assert tail.tokens == wanted


# Health


async def test_health_is_red_without_systemd(house: House) -> None:
    house.stage.units.attached = False
    status, answer = await house.get("/health")
    assert (status, answer) == (
        503, {"status": "failing", "problems": ["there is no connection to systemd"]},
    )  # fmt: skip


async def test_health_is_red_while_nothing_comes(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pauses, "COOL_DOWN", (0.02, 0.05))
    house.stage.units.break_verb("start", "org/a")
    await house.post()
    status, answer = await house.get("/health")
    assert status == 503 and "'org/a' keeps failing" in str(answer)
    house.stage.units.mend_verb("start", "org/a")
    await asyncio.sleep(0.06)
    assert (await house.post())[0] == 200
    assert await house.get("/health") == (200, {"status": "ok"})


@pytest.mark.parametrize("by_hand", [False, True])
async def test_health_is_red_while_a_model_does_not_leave(
    house: House, monkeypatch: pytest.MonkeyPatch, by_hand: bool
) -> None:
    monkeypatch.setattr(pauses, "LEAVE_AGAIN", 0.02)
    await house.post()
    house.stage.units.break_verb("stop", "org/a")
    waits = asyncio.create_task(house.post({"model": "b"}))
    await house.stage.until(lambda: house.stage.switcher.model("org/a").stuck > 1)
    status, answer = await house.get("/health")
    assert status == 503 and "'org/a' does not leave: 'org/a' would not stop" in str(answer)
    if by_hand:
        house.stage.units.die("org/a", DOWN)
    house.stage.units.mend_verb("stop", "org/a")
    assert (await waits)[0] == 200
    assert await house.get("/health") == (200, {"status": "ok"})
    assert (await house.post())[0] == 200
    assert await house.get("/health") == (200, {"status": "ok"})


async def test_one_broken_model_beside_one_that_serves_is_not_red(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pauses, "COOL_DOWN", (0.02, 60.0))
    house.stage.units.break_verb("start", "b")
    await house.post({"model": "b"})
    assert (await house.get("/health"))[0] == 503
    await house.post()
    assert (await house.get("/health"))[0] == 200


def test_each_phase_has_its_name() -> None:
    counts = metrics.Counts()
    for cost in Cost:
        counts.moved("a", cost, 1.0)
    phases = {s.labels["phase"] for f in counts.moves.collect() for s in f.samples}
    assert phases == {"cold", "restore", "resume", "out", "park", "drain"}
