"""Sessions come and go within the memory set aside; what was asked of a cold model is answered."""

import hashlib
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from onnx import parser

from agent.foundation.errors import AtollError, Busy, Malformed
from agent.serving.doorbell import InferRing
from agent.serving.fair import Priority, Turn
from agent.workers import inference_models, inference_providers
from agent.workers.inference_models import Memory, Models, Source
from agent.workers.inference_runner import Runner
from agent.workers.inference_session import LoadRefused
from agent.workers.inference_work import Link, Work

TURN = Turn(0, 1, Priority.NORMAL, 1000)


class Notes:
    """In the place of shared memory: what was noted as running."""

    def __init__(self) -> None:
        self.running: dict[int, bytes | None] = {}

    def note_running(self, slot: int, key: bytes | None) -> None:
        self.running[slot] = key


LINK = Link(cast("Any", None), cast("Any", Notes()))


class Tape:
    """In the place of a runner: what it is given, it keeps."""

    def __init__(self) -> None:
        self.models: dict[bytes, Any] = {}
        self.cold: Callable[[list[Work]], bool] = lambda _: False
        self.given: list[Work] = []
        self.failed: list[tuple[Work, BaseException]] = []

    def put(self, works: list[Work]) -> None:
        self.given += works

    def fail(self, work: Work, error: BaseException) -> None:
        self.failed.append((work, error))

    def trim_soon(self) -> None:
        pass


class Gauge(Memory):
    """Every session takes nothing that can be measured: what counts is the file's size."""

    left = 0.5

    def __init__(self) -> None:
        pass

    def held_bytes(self) -> int:
        return 0

    def left_part(self) -> float:
        return self.left


def model(body: str) -> bytes:
    text = f'<ir_version: 8, opset_import: ["" : 13]> g (float[N] x) => (float[N] y) {{ {body} }}'
    content: bytes = parser.parse_model(text).SerializeToString()
    return content


def source(folder: Path, name: str, body: str = "y = Neg(x)") -> Source:
    content = model(body)
    path = folder / name
    path.write_bytes(content)
    return Source(
        os.open(path, os.O_RDONLY), hashlib.sha256(content).digest(), name, "1", "berlin", ()
    )


def work(key: bytes) -> Work:
    return Work(LINK, InferRing(1, 0, 0, 0, None, key, 9.0, 0.0, TURN), 9.0)


def until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < end
        threading.Event().wait(0.002)


@pytest.fixture
def tape() -> Tape:
    return Tape()


@pytest.fixture
def models(tape: Tape) -> Models:
    """With room for two."""
    return Models(cast("Runner", tape), Gauge(), 5 * len(model("y = Neg(x)")) // 2)


def test_the_session_used_longest_ago_is_let_go_and_comes_back_when_asked_for(
    models: Models, tape: Tape, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        models.add(name.encode(), source(tmp_path, name))
    tape.models[b"a"].used_at = time.monotonic() + 1
    models.add(b"c", source(tmp_path, "c"))
    assert set(tape.models) == {b"a", b"c"}
    waiting = [work(b"b"), work(b"b")]
    assert tape.cold(waiting)
    until(lambda: len(tape.given) == 2)
    assert b"b" in tape.models
    assert len(tape.models) == 2, "another one had to go"


def test_a_model_that_kills_the_process_when_it_comes_back_can_be_blamed(
    models: Models, tape: Tape, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        models.add(name.encode(), source(tmp_path, name))
    notes = cast("Notes", LINK.slots)
    noted: list[dict[int, bytes | None]] = []
    inner = inference_providers.open_session

    def open_session(*given: Any, **named: Any) -> Any:
        noted.append(dict(notes.running))
        return inner(*given, **named)

    monkeypatch.setattr(inference_models, "open_session", open_session)
    assert tape.cold([work(b"a")])
    until(lambda: len(tape.given) == 1)
    assert noted == [{0: b"a"}]
    assert notes.running == {0: None}


def test_what_is_larger_than_all_the_memory_set_aside_is_served_alone(
    tape: Tape, tmp_path: Path
) -> None:
    models = Models(cast("Runner", tape), Gauge(), 1)
    for name in ("a", "b"):
        models.add(name.encode(), source(tmp_path, name))
    assert set(tape.models) == {b"b"}


def test_an_unknown_model_is_not_waited_for(models: Models, tape: Tape, tmp_path: Path) -> None:
    assert not tape.cold([work(b"never")])
    models.add(b"a", source(tmp_path, "a"))
    models.remove(b"a")
    assert not tape.cold([work(b"a")])
    assert tape.models == {}


def test_a_cold_model_whose_file_was_spoilt_answers_that_it_cannot_be_loaded(
    models: Models, tape: Tape, tmp_path: Path
) -> None:
    for name in ("a", "b", "c"):
        models.add(name.encode(), source(tmp_path, name))
    (tmp_path / "a").write_bytes(b"spoilt")
    assert tape.cold([work(b"a")])
    until(lambda: bool(tape.failed))
    ((_, error),) = tape.failed
    assert isinstance(error, Busy)
    assert "digest" in str(error)


def test_a_refused_model_leaves_the_former_one_in_service(
    models: Models, tape: Tape, tmp_path: Path
) -> None:
    models.add(b"a", source(tmp_path, "a"))
    former = tape.models[b"a"]
    broken = source(tmp_path, "broken")
    os.truncate(tmp_path / "broken", 10)
    with pytest.raises(Malformed):
        models.add(b"a", broken)
    (tmp_path / "text").write_bytes(b"no model")
    digest = hashlib.sha256(b"no model").digest()
    descriptor = os.open(tmp_path / "text", os.O_RDONLY)
    with pytest.raises(LoadRefused):
        models.add(b"a", Source(descriptor, digest, "a", "1", "berlin", ()))
    assert tape.models[b"a"] is former
    for closed in (broken.descriptor, descriptor):
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(closed)


def test_another_model_under_the_same_key_takes_the_place_of_the_former(
    models: Models, tape: Tape, tmp_path: Path
) -> None:
    first = source(tmp_path, "first")
    models.add(b"a", first)
    former = tape.models[b"a"]
    models.add(b"a", source(tmp_path, "second", "y = Relu(x)"))
    assert tape.models[b"a"] is not former
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(first.descriptor)


def test_the_number_of_models_is_bounded(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference_models, "MODELS_MAX", 1)
    models.add(b"a", source(tmp_path, "a"))
    with pytest.raises(AtollError, match="1 models are known"):
        models.add(b"b", source(tmp_path, "b"))
    models.add(b"a", source(tmp_path, "again"))


def test_idle_sessions_go_when_the_machine_is_short_of_memory(
    models: Models, tape: Tape, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        models.add(name.encode(), source(tmp_path, name))
    tape.models[b"a"].used_at -= 1000
    models._review()
    assert set(tape.models) == {b"a", b"b"}, "there is room"
    monkeypatch.setattr(Gauge, "left", 0.01)
    models._review()
    assert set(tape.models) == {b"b"}
    assert tape.cold([work(b"a")])
    until(lambda: len(tape.given) == 1)


def test_memory_is_read_from_the_kernel() -> None:
    memory = Memory()
    assert 1 << 20 < memory.held_bytes() < 1 << 40
    assert 0.0 < memory.left_part() < 1.0


def test_a_model_that_answers_its_golden_question_wrongly_is_refused_and_the_former_serves_on(
    models: Models, tape: Tape, tmp_path: Path
) -> None:
    good, _ = models.add(b"a", source(tmp_path, "a"))
    golden = (
        '{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}],'
        '"outputs": [{"name": "y", "datatype": "FP32", "shape": [1], "data": [1]}]}'
    )
    with pytest.raises(LoadRefused, match="answers its golden question wrongly"):
        models.add(b"a", replace(source(tmp_path, "b"), golden=golden))
    assert tape.models[b"a"].session is good
