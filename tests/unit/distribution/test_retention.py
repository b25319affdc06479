from collections.abc import Mapping

from agent.distribution.retention import (
    LOOK_S,
    REST_S,
    UNNAMED_S,
    Asked,
    Blob,
    Collect,
    Full,
    Leave,
    Look,
    Looked,
    Remove,
    Retention,
    RetentionEffect,
    Sought,
    Standing,
    Stay,
    Told,
)
from agent.foundation.ids import Digest, SiteId
from agent.foundation.machine import NEVER, Woke

A, B, C = (Digest(bytes([n]) * 32) for n in b"abc")
X, Y, Z = (SiteId(bytes([n]) * 32) for n in b"xyz")
WANTED, NAMED, UNNAMED = Blob(Standing.WANTED), Blob(Standing.NAMED), Blob(Standing.UNNAMED)


def look(machine: Retention, blobs: Mapping[Digest, Blob], now: float) -> list[RetentionEffect]:
    assert machine.wake_at() <= now
    assert machine.step(Woke(), now) == [Look()]
    return machine.step(Looked(blobs), now)


def removed(effects: list[RetentionEffect]) -> list[Digest]:
    return [effect.digest for effect in effects if isinstance(effect, Remove)]


def leaving(machine: Retention) -> Digest | None:
    return machine.leaving


def pressed(machine: Retention, blobs: Mapping[Digest, Blob], now: float) -> list[RetentionEffect]:
    assert machine.step(Full(), now) == [Look()]
    return machine.step(Looked(blobs), now)


def test_what_nothing_names_goes_after_its_time_and_all_else_stays() -> None:
    machine = Retention(now=0.0)
    blobs = {A: UNNAMED, B: NAMED, C: WANTED}
    assert look(machine, blobs, 0.0) == []
    assert machine.goes_at(A) == UNNAMED_S
    assert machine.goes_at(B) == machine.goes_at(C) == NEVER
    assert machine.wake_at() == LOOK_S
    assert look(machine, blobs, UNNAMED_S - 1) == []
    assert removed(look(machine, blobs, UNNAMED_S + LOOK_S)) == [A]
    assert look(machine, {B: NAMED, C: WANTED}, 1e9) == []


def test_the_time_begins_anew_when_something_has_named_it_or_somebody_asked_for_it() -> None:
    machine = Retention(unnamed_s=100.0, now=0.0)
    look(machine, {A: UNNAMED, B: UNNAMED}, 0.0)
    look(machine, {A: NAMED, B: UNNAMED}, 60.0)
    machine.step(Sought(B), 90.0)
    machine.step(Sought(C), 90.0)
    assert look(machine, {A: UNNAMED, B: UNNAMED}, 120.0) == []
    assert removed(look(machine, {A: UNNAMED, B: UNNAMED}, 190.0)) == [B]
    assert removed(look(machine, {A: UNNAMED}, 250.0)) == [A]


def test_the_operator_can_have_it_go_now() -> None:
    machine = Retention(now=0.0)
    assert machine.step(Collect(), 5.0) == [Look()]
    blobs = {A: UNNAMED, B: NAMED, C: Blob(Standing.NAMED, is_whole=False)}
    assert removed(machine.step(Looked(blobs), 5.0)) == [A, C]
    assert machine.step(Looked({A: UNNAMED}), 6.0) == []


def test_a_part_that_nobody_wants_here_is_no_copy() -> None:
    machine = Retention(now=0.0)
    part = Blob(Standing.NAMED, is_whole=False)
    blobs = {A: part, B: Blob(Standing.WANTED, is_whole=False)}
    assert look(machine, blobs, 0.0) == []
    assert removed(pressed(machine, blobs, 1.0)) == [A]


def test_under_pressure_the_longest_unwanted_is_left_if_two_others_hold_it() -> None:
    machine = Retention(now=0.0)
    look(machine, {A: WANTED, B: NAMED, C: WANTED}, 0.0)
    look(machine, {A: NAMED, B: NAMED, C: WANTED}, LOOK_S)
    blobs = {A: NAMED, B: NAMED, C: WANTED}
    assert pressed(machine, blobs, 100.0) == [Leave(B)]
    assert leaving(machine) == B
    assert machine.step(Full(), 100.0) == []  # one at a time
    assert machine.step(Asked(B, frozenset((X, Y, Z))), 100.0) == []
    assert machine.step(Told(B, X, is_held=True), 100.1) == []
    assert machine.step(Told(B, X, is_held=True), 100.1) == []  # said twice counts once
    assert machine.step(Told(B, Y, is_held=False), 100.2) == []
    assert removed(machine.step(Told(B, Z, is_held=True), 100.3)) == [B]
    assert leaving(machine) is None
    assert machine.step(Woke(), 100.4) == []  # no more than was asked for
    assert pressed(machine, {A: NAMED, C: WANTED}, 101.0) == [Leave(A)]


def test_a_blob_that_too_few_others_hold_stays_and_the_next_one_is_tried() -> None:
    machine = Retention(now=0.0)
    blobs = {A: NAMED, B: NAMED}
    look(machine, blobs, 0.0)
    assert pressed(machine, blobs, 1.0) == [Leave(A)]
    machine.step(Asked(A, frozenset((X, Y))), 1.0)
    machine.step(Told(A, X, is_held=True), 1.1)
    machine.step(Told(B, Y, is_held=True), 1.2)  # of another blob
    machine.step(Told(A, Z, is_held=True), 1.2)  # was not asked
    assert machine.step(Told(A, Y, is_held=False), 1.3) == [Stay(A)]
    assert look(machine, blobs, 1.3) == [Leave(B)]
    assert machine.step(Asked(B, frozenset()), 1.4) == [Stay(B)]
    assert look(machine, blobs, 1.5) == []
    assert pressed(machine, blobs, 2.0) == []
    assert pressed(machine, blobs, 2.0 + REST_S) == [Leave(A)]


def test_the_one_being_left_is_not_removed_by_a_look() -> None:
    machine = Retention(unnamed_s=1.0, now=0.0)
    look(machine, {A: NAMED}, 0.0)
    assert pressed(machine, {A: NAMED}, 1.0) == [Leave(A)]
    look(machine, {A: UNNAMED}, 100.0)
    assert look(machine, {A: UNNAMED}, 200.0) == []
