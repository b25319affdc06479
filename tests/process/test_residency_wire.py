"""Labels as real traffic keeps them: five namespaces, tcpdump at each card, and a canary in what is labelled.

One story is played and captured; the tests are about what it left. The *canary* stands in everything that
must stay in DE (tensors, a model, wrong requests, what errors say), the *decoy* in the same things without
a label, or with that of another country: it shows that a canary there would have been seen.
"""

import contextlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from asking_within import Ask, Told
from daemon_cluster import Daemon, scratch, submit_job, wait_for
from mesh_network import NEEDS_NAMESPACES, run
from onnx import TensorProto, helper
from packet_reading import TCP, UDP, packets
from serving_models import echo_model
from serving_site import save_model
from wire_cluster import COUNTRIES, FOREIGN, Wire, captured_cluster

from agent.drivers.clock import wall

pytestmark = [pytest.mark.process, pytest.mark.timeout(400), *NEEDS_NAMESPACES]

HOME = [name for name in COUNTRIES if name not in FOREIGN]
TENSOR_BYTES = 200_000
"""Of each large request; what crosses a foreign card while only labelled ones are sent is far less."""
INFER = "/v2/models/{}/infer"
FLOOD, AT_ONCE = 60, 16
PORTS = {7411, 7412}

NOSY = """
import http.client, json, ssl, sys
from agent.drivers import keystore, tls
from pathlib import Path
state, host, digest, secrets = sys.argv[1:]
context = tls.client_context(keystore.load(Path(state) / "identity"))
context.keylog_filename = secrets
told = []
for part in ("manifest", "held", "chunks/0", "chunks/1"):
    connection = http.client.HTTPSConnection(host, 7412, context=context, timeout=10)
    connection.request("GET", f"/blobs/{digest}/{part}")
    response = connection.getresponse()
    told.append([response.status, response.read().decode("latin-1")])
    connection.close()
print(json.dumps(told))
"""
"""A member that asks for a blob by its digest, which the catalog tells everybody."""


@dataclass
class Story:
    """What was asked, answered and captured."""

    wire: Wire
    canary: str
    decoy: str
    decoys: list[Told] = field(default_factory=list)
    labelled: dict[str, list[Told]] = field(default_factory=dict)
    quiet_s: tuple[float, float] = (0.0, 0.0)
    """From the first labelled request to the last, wall clock; no decoy was sent meanwhile."""
    nosy: list[tuple[int, str]] = field(default_factory=list)
    after: list[Told] = field(default_factory=list)
    blob_bytes: int = 0
    told: dict[str, list[str]] = field(default_factory=dict)
    """By foreign site: its metrics and what the command line shows."""
    audit: list[dict[str, object]] = field(default_factory=list)
    learned: dict[str, bytes] = field(default_factory=dict)
    """What a job that is to stay in DE has made: parameters and updates, by the names of their files."""
    job: dict[str, object] = field(default_factory=dict)


def filled(word: str, size: int = TENSOR_BYTES) -> bytes:
    """So many bytes that nothing compresses, with the word in every kilobyte."""
    blocks = (random.randbytes(1024 - len(word)) + word.encode() for _ in range(-(-size // 1024)))
    return b"".join(blocks)[:size]


def tensor(word: str, model: str = "echo", **headers: str) -> Ask:
    """A large request in binary."""
    data = filled(word)
    head = json.dumps(
        {"inputs": [
            {"name": "x_UINT8", "shape": [len(data)], "datatype": "UINT8",
             "parameters": {"binary_data_size": len(data)}},
        ], "parameters": {"binary_data_output": True}}
    ).encode()  # fmt: skip
    length = {"Inference-Header-Content-Length": str(len(head)), "Atoll-Deadline-Ms": "8000"}
    return Ask(INFER.format(model), {**length, **headers}, head + data)


def text(word: str, name: str = "x_BYTES", **headers: str) -> Ask:
    """A small one in JSON."""
    content = {"inputs": [{"name": name, "shape": [2], "datatype": "BYTES", "data": ["-", word]}]}
    return Ask(
        INFER.format("text"), {"Content-Type": "application/json", **headers},
        json.dumps(content).encode(),
    )  # fmt: skip


def within(label: str) -> dict[str, str]:
    return {"Atoll-Residency": label}


def appending_model(path: Path, word: str) -> Path:
    """x_UINT8 [n] -> the same and a constant of 600 kB (three chunks) full of the word."""
    data = filled(word, 600_000)
    return save_model(
        path,
        [helper.make_node("Concat", ["x_UINT8", "kept"], ["y"], axis=0)],
        [("x_UINT8", TensorProto.UINT8, ["n"])],
        [("y", TensorProto.UINT8, ["m"])],
        [helper.make_tensor("kept", TensorProto.UINT8, [len(data)], data, raw=True)],
    )


def broken_model(path: Path, word: str) -> Path:
    """What ONNX Runtime says of it has the word in it."""
    return save_model(
        path,
        [helper.make_node(word, ["x"], ["y"])],
        [("x", TensorProto.FLOAT, ["n"])],
        [("y", TensorProto.FLOAT, ["n"])],
    )


@pytest.fixture(scope="module")
def story() -> Iterator[Story]:
    with scratch() as folder, captured_cluster(folder) as wire:
        told = Story(wire, f"canary-{os.urandom(8).hex()}", f"decoy-{os.urandom(8).hex()}")
        serve_models(told)
        ask_without_label(told)
        began = wall()
        train_with_label(told)
        ask_with_label(told)
        ask_with_fewer_and_fewer_who_may(told)
        told.quiet_s = (began.timestamp(), wall().timestamp())
        told.after = wire.ask("berlin", *[tensor(told.decoy) for _ in range(4)])
        for name in FOREIGN:
            site = wire.sites[name]
            (metrics,) = wire.ask(name, Ask("/metrics", {}), port=8002)
            told.told[name] = [metrics.body.decode(), *(
                site.cli(*words.split()).stdout
                for words in ("status --json", "model list --json", "members --json", "get",
                              "peers --json", "audit report --json")
            )]  # fmt: skip
        report = wire.sites["berlin"].cli("audit", "report", "--json", ok=False)
        told.audit = json.loads(report.stdout)["rows"]
        wire.end()
        yield told


def serve_models(story: Story) -> None:
    """Echoes at all but berlin; one model that must stay in DE, the same as a decoy, a broken one."""
    wire, berlin = story.wire, story.wire.sites["berlin"]
    shelf = wire.folder / "models"
    shelf.mkdir()
    others = [name for name in COUNTRIES if name != "berlin"]

    def push(file: Path, name: str, sites: list[str], *more: str, ok: bool = True) -> str:
        done = berlin.cli(
            "model", "push", str(file), "--name", name, "--version", "1", "--timeout", "40s",
            "--sites", ",".join(sites), *more, ok=ok,
        )  # fmt: skip
        return done.stdout + done.stderr

    push(echo_model(shelf / "echo.onnx", ["UINT8"]), "echo", others)
    push(echo_model(shelf / "text.onnx", ["BYTES"]), "text", others)
    push(echo_model(shelf / "bare.onnx", ["UINT8", "BYTES"]), "bare", ["munich"])
    push(appending_model(shelf / "open.onnx", story.decoy), "open", others)
    vault = appending_model(shelf / "vault.onnx", story.canary)
    story.blob_bytes = vault.stat().st_size
    push(vault, "vault", ["munich", "hamburg"], "--residency", "DE")
    broken = broken_model(shelf / "broken.onnx", f"{story.canary}-op")
    refused = push(broken, "broken", ["munich"], "--residency", "DE", ok=False)
    assert "munich refuses broken:1" in refused
    assert story.canary in wire.sites["munich"].model("broken", "1")["reason"]
    push(broken_model(shelf / "loud.onnx", f"{story.decoy}-op"), "loud", ["paris"], ok=False)
    for model in ("echo", "text"):
        wait_for(
            lambda model=model: set(others) <= allowed(wire, model),  # type: ignore[misc]
            20, "berlin knows who serves", [berlin],
        )  # fmt: skip
    wait_for(
        lambda: "paris" in allowed(wire, "bare"), 20, "berlin believes what paris claims", [berlin]
    )
    wait_for(lambda: allowed(wire, "vault") == {"munich", "hamburg"}, 20, "as labelled", [berlin])
    story.nosy = nosy(story, str(wire.sites["munich"].model("vault", "1")["digest"]))


def allowed(wire: Wire, model: str) -> set[str]:
    """Who may and can answer a request of berlin's, as berlin sees it."""
    rows = wire.sites["berlin"].get("/1/route/explain", model=model)["candidates"]
    return {row["name"] for row in rows}


def nosy(story: Story, digest: str) -> list[tuple[int, str]]:
    """What munich tells paris that asks for the vault, past its own agent."""
    paris, wire = story.wire.sites["paris"], story.wire
    script = wire.folder / "nosy.py"
    script.write_text(NOSY)
    machine = [*paris.within, "env", f"PYTHONPATH={Path(__file__).parents[2]}", sys.executable]
    out = run(
        *machine, str(script), str(paris.state_dir), wire.sites["munich"].host, digest,
        str(wire.folder / "keys/nosy.secrets"),
    )  # fmt: skip
    return [(status, body) for status, body in json.loads(out)]


def train_with_label(story: Story) -> None:
    """Two rounds over the data in DE; paris has data of the same name."""
    homes = [story.wire.sites[name] for name in HOME]

    def files() -> dict[str, Path]:
        found = [path for site in homes for path in (site.state_dir / "blobs/data").rglob("*")]
        return {path.name: path for path in found if path.is_file()}

    former = set(files())
    job = submit_job(homes[0], publish="digits", residency=["DE"], sites_min=2)

    def is_finished() -> bool:
        """Updates are let go when they have been counted, so they are read as they come."""
        for name, path in files().items():
            if name not in former | set(story.learned):
                with contextlib.suppress(FileNotFoundError):
                    story.learned[name] = path.read_bytes()
        return finished(homes[0], job)

    wait_for(is_finished, 90, "the job is finished", homes)
    story.job = homes[0].get(f"/1/jobs/{job}")


def finished(site: Daemon, job: str) -> bool:
    value = site.get(f"/1/jobs/{job}")
    assert value["state"] != "failed", value["reason"]
    return bool(value["state"] == "finished")


def ask_without_label(story: Story) -> None:
    """The decoy goes everywhere: as tensors, as text, in a wrong request, with a foreign label."""
    wire, decoy = story.wire, story.decoy
    for label in ("FR", "ES", "FR,ES"):
        story.decoys += wire.ask(
            "berlin", tensor(decoy, **within(label)), text(decoy, **within(label))
        )
    wrong = text(decoy, f"x_{decoy}", **within("FR"))
    story.decoys += wire.ask("berlin", wrong, *[tensor(decoy) for _ in range(4)])


def ask_with_label(story: Story) -> None:
    """The canary, to whomever the label lets have it: one by one, wrong ones, many at once, late ones."""
    wire, canary, home = story.wire, story.canary, within("DE")
    labelled = story.labelled
    labelled["one by one"] = wire.ask("berlin", *[tensor(canary, **home) for _ in range(6)])
    labelled["text"] = wire.ask("berlin", *[text(canary, **home) for _ in range(4)])
    labelled["by the model"] = wire.ask("berlin", *[tensor(canary, "vault") for _ in range(4)])
    labelled["wrong"] = wire.ask(
        "berlin", text(canary, f"x_{canary}", **home), text(canary, "x_BYTES", **home, **{
            "Atoll-Request-Id": canary, "tracestate": f"{canary}=1",
            "traceparent": f"00-{os.urandom(16).hex()}-{os.urandom(8).hex()}-01",
        }),
    )  # fmt: skip
    labelled["unknown"] = wire.ask(
        "berlin", *[tensor(canary, **within(label)) for label in ("ATLANTIS", "US", canary)]
    )
    labelled["no list"] = wire.ask(
        "berlin",
        *[tensor(canary, **within(label)) for label in ("", "DE;FR", f"{canary} {canary}")],
    )
    labelled["too late"] = wire.ask(
        "berlin", *[tensor(canary, **home, **{"Atoll-Deadline-Ms": "1"}) for _ in range(4)]
    )
    flood = [tensor(canary, **home) for _ in range(FLOOD)]

    def is_spread() -> bool:
        """Whoever was late a moment ago gets nothing until that has faded."""
        if many := labelled.setdefault("many", []):
            time.sleep(2)
        many += wire.ask("berlin", *flood, at_once=AT_ONCE)
        return {one.by for one in many if one.status == 200} >= {*HOME} - {"berlin"}

    wait_for(is_spread, 30, "a flood is borne by both at home", [wire.sites["berlin"]])
    munich = wire.sites["munich"].pid_of("gateway")
    os.kill(munich, signal.SIGSTOP)
    try:
        labelled["one stands still"] = wire.ask(
            "berlin", *[tensor(canary, **home, **{"Atoll-Deadline-Ms": "2000"}) for _ in range(8)]
        )
    finally:
        os.kill(munich, signal.SIGCONT)


def ask_with_fewer_and_fewer_who_may(story: Story) -> None:
    """Those in DE die one after the other; the idle ones abroad would answer at once."""
    wire, canary, home = story.wire, story.canary, within("DE")
    asks = [tensor(canary, **home) for _ in range(6)]
    asks += [text(canary, **home), tensor(canary, "vault")]
    wire.sites["munich"].crash()
    story.labelled["one is dead"] = wire.ask("berlin", *asks)
    wire.sites["hamburg"].crash()
    story.labelled["all are dead"] = wire.ask("berlin", *asks)
    wait_for(lambda: allowed(wire, "echo") == set(FOREIGN), 30, "berlin knows that they are dead")
    story.labelled["all are known to be dead"] = wire.ask("berlin", *asks)


# --- what was answered -----------------------------------------------------------------------------
def test_what_is_labelled_is_answered_where_the_label_says_and_nowhere_else(story: Story) -> None:
    for what in ("one by one", "text", "by the model", "one is dead"):
        answers = story.labelled[what]
        assert [one.status for one in answers] == [200] * len(answers), what
        assert {one.by for one in answers} <= {"munich", "hamburg"}, what
        assert all(story.canary.encode() in one.body for one in answers), what
    still = story.labelled["one stands still"]
    assert {(one.status, one.by) for one in still} <= {(200, "hamburg"), (504, "")}
    assert still[-1].status == 200, "after some late ones hamburg is asked first"
    assert {one.by for one in story.labelled["one is dead"]} == {"hamburg"}
    many = story.labelled["many"]
    assert {one.status for one in many} <= {200, 429, 503}
    assert {one.by for one in many if one.status == 200} == {"munich", "hamburg"}


def test_what_nobody_may_answer_is_refused_by_name_and_never_sent_elsewhere(story: Story) -> None:
    for one in story.labelled["unknown"]:
        assert one.status == 403
        assert b"request may be answered only in" in one.body
        assert b"paris" in one.body
    for one in story.labelled["no list"]:
        assert one.status == 400
        assert b"Atoll-Residency is not a list of jurisdictions" in one.body
    for what in ("all are dead", "all are known to be dead"):
        for one in story.labelled[what]:
            assert one.status in (403, 503, 504), (what, one.status, one.body[:400])
            assert one.by == ""
    wrong = story.labelled["wrong"][0]
    assert wrong.status == 400
    assert story.canary.encode() in wrong.body
    assert {one.status for one in story.labelled["too late"]} <= {504, 503, 200}


def test_the_same_without_label_is_answered_abroad_and_goes_on_when_home_is_gone(
    story: Story,
) -> None:
    assert {one.by for one in story.decoys if one.status == 200} >= set(FOREIGN)
    assert [one.status for one in story.after] == [200] * len(story.after)
    assert {one.by for one in story.after} <= set(FOREIGN)


def test_a_member_that_asks_for_a_labelled_blob_by_its_digest_is_told_the_rule(
    story: Story,
) -> None:
    for status, body in story.nosy:
        assert status == 403
        assert "it may be held in DE, the site is in FR" in body


def test_the_sender_wrote_down_no_labelled_byte_for_a_foreign_site(story: Story) -> None:
    rows = [row for row in story.audit if row["kind"] == "forward"]
    assert all(row["is_within"] for row in story.audit)
    assert {row["name"] for row in rows if row["label"] == ["DE"]} == {"munich", "hamburg"}
    assert {row["name"] for row in rows if not row["label"]} & set(FOREIGN)


# --- what crossed the cards ------------------------------------------------------------------------
def test_every_byte_at_the_foreign_cards_was_read_and_none_is_the_canarys(story: Story) -> None:
    for name in FOREIGN:
        clear = story.wire.clear[name]
        assert clear.closed == []
        assert clear.opened > 200, name
        assert clear.has(story.decoy.encode()), f"{name} was sent the decoy, so it is seen"
        for form in forms_of(story.canary):
            assert not clear.has(form), f"{name} was sent the canary as {form!r}"


def test_the_canary_is_read_at_the_cards_where_it_belongs(story: Story) -> None:
    """Else the test above would prove nothing."""
    for name in HOME:
        clear = story.wire.clear[name]
        assert clear.has(story.canary.encode()), name
        large = [text for text in clear.texts if text.count(story.canary.encode()) >= 150]
        assert large, f"whole tensors at {name}"
    blob = story.wire.clear["hamburg"].texts
    assert max(text.count(story.canary.encode()) for text in blob) >= 500, "the model itself"


def test_no_word_crosses_any_card_in_clear(story: Story) -> None:
    for name, capture in story.wire.captures.items():
        raw = capture.file.read_bytes()
        for word in (story.canary, story.decoy):
            assert not any(form in raw for form in forms_of(word)), name


def test_less_than_one_labelled_tensor_crossed_a_foreign_card_in_all(story: Story) -> None:
    """No key is needed for this: whoever got one of over a hundred would show it."""
    begin_s, end_s = story.quiet_s
    crossed = {name: story.wire.crossed(name, begin_s, end_s) for name in COUNTRIES}
    sent = sum(len(answers) for answers in story.labelled.values())
    assert sent > 100
    assert crossed["berlin"] > 80 * 2 * TENSOR_BYTES, "asked, and answered by an echo"
    for name in FOREIGN:
        assert 0 < crossed[name] < TENSOR_BYTES, crossed
        before = story.wire.crossed(name, 0.0, begin_s)
        assert before > 600_000 + 2 * TENSOR_BYTES, "the decoys and the open model show"


def test_sites_speak_to_members_at_their_two_ports_only(story: Story) -> None:
    members = {site.host for site in story.wire.sites.values()}
    for name, capture in story.wire.captures.items():
        for one in packets(capture.file):
            assert {one.source[0], one.target[0]} <= members, (name, one)
            if one.protocol == UDP:
                assert one.target[1] == 7411, (name, one)
            elif one.protocol == TCP:
                assert {one.source[1], one.target[1]} & PORTS, (name, one)


def test_no_part_of_a_labelled_jobs_updates_and_parameters_is_sent_abroad(story: Story) -> None:
    rounds = story.job["rounds_done"]
    assert isinstance(rounds, list)
    assert [{one["name"] for one in row["counted"]} for row in rounds] == [
        {"munich", "hamburg"}
    ] * 2
    parts = [part for data in story.learned.values() for part in parts_of(data)]
    assert len(parts) > 50
    home = story.wire.clear["hamburg"]
    assert sum(home.has(part) for part in parts) > len(parts) // 2, (
        "they are read where they belong"
    )
    for name in FOREIGN:
        assert not any(story.wire.clear[name].has(part) for part in parts), name
        for path in story.wire.sites[name].folder.rglob("*"):
            if path.is_file():
                data = path.read_bytes()
                assert not any(part in data for part in parts), path


def parts_of(data: bytes) -> list[bytes]:
    """Some bytes of every 16 KiB that are like no others."""
    found = (data[place : place + 48] for place in range(1024, len(data), 1 << 14))
    return [part for part in found if len(set(part)) > 24]


# --- what stayed -----------------------------------------------------------------------------------
def test_no_file_and_no_figure_of_a_foreign_site_holds_the_canary(story: Story) -> None:
    for name in FOREIGN:
        site = story.wire.sites[name]
        files = [path for path in site.folder.rglob("*") if path.is_file()]
        assert {"log", "atoll.db"} <= {path.name for path in files}
        for path in files:
            data = path.read_bytes()
            assert not any(form in data for form in forms_of(story.canary)), path
        for shown in story.told[name]:
            assert shown
            assert story.canary not in shown, shown
        assert any(story.decoy.encode() in path.read_bytes() for path in files), "its open model"
    kept = [path for path in story.wire.sites["hamburg"].state_dir.rglob("*") if path.is_file()]
    assert any(story.canary.encode() in path.read_bytes() for path in kept)


def test_no_log_holds_a_defect(story: Story) -> None:
    """Though requests were given up in mid-handshake, and sites died under them."""
    for site in story.wire.sites.values():
        assert "Traceback" not in site.log(), site.log()


def forms_of(word: str) -> list[bytes]:
    """As it is, in hexadecimal, and as UTF-16."""
    plain = word.encode()
    return [plain, plain.hex().encode(), plain.hex().upper().encode(), word.encode("utf-16-le")]
