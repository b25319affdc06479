from random import Random

from agent.simulation.network import Faults, Network

Log = list[tuple[float, str, str, object]]


def network(faults: Faults | None = None, seed: int = 1) -> tuple[Network[str], Log]:
    log: Log = []
    made: Network[str] = Network(
        Random(seed), lambda a, b, what: log.append((made.now, a, b, what)), faults
    )
    return made, log


def test_messages_arrive_after_a_delay() -> None:
    net, log = network()
    net.post("a", "b", "hello")
    assert log == []
    net.run_until(10)
    assert [entry[1:] for entry in log] == [("a", "b", "hello")]
    assert log[0][0] >= net.faults.delay_min_s


def test_one_seed_gives_one_trace_and_another_seed_another() -> None:
    def trace(seed: int) -> Log:
        net, log = network(Faults(loss=0.3, duplicate=0.3), seed)
        for number in range(50):
            net.post("a", "b", number)
        net.run_until(10)
        return log

    assert trace(1) == trace(1)
    assert trace(1) != trace(2)


def test_loss_duplication_and_reordering_happen() -> None:
    net, log = network(Faults(loss=0.2, duplicate=0.2))
    for number in range(200):
        net.post("a", "b", number)
    net.run_until(10)
    arrived = [what for *_, what in log]
    assert len(set(arrived)) < 200
    assert len(arrived) > len(set(arrived))
    assert arrived != sorted(arrived, key=lambda what: int(str(what)))


def test_a_cut_is_one_way_and_heals() -> None:
    net, log = network()
    net.cut(["a"], ["b"])
    net.post("a", "b", 1)
    net.post("b", "a", 2)
    net.run_until(1)
    assert [what for *_, what in log] == [2]
    net.heal()
    net.post("a", "b", 3)
    net.run_until(2)
    assert [what for *_, what in log] == [2, 3]


def test_a_message_on_its_way_is_lost_in_a_cut_made_meanwhile() -> None:
    net, log = network(Faults(delay_min_s=1.0, delay_mean_s=0.0))
    net.post("a", "b", 1)
    net.call_at(0.5, lambda: net.cut(["a"], ["b"]))
    net.run_until(5)
    assert log == []


def test_a_paused_site_gets_its_messages_when_it_runs_again() -> None:
    net, log = network()
    net.pause("b", until=3.0)
    net.post("a", "b", 1)
    net.run_until(2)
    assert log == []
    assert net.paused_until("b") == 3.0
    net.run_until(4)
    assert [(at, what) for at, *_, what in log] == [(3.0, 1)]
    assert net.paused_until("b") == 0.0


def test_ties_are_broken_by_insertion() -> None:
    net, _ = network()
    order: list[int] = []
    for number in range(5):
        net.call_at(1.0, lambda number=number: order.append(number))
    net.run_until(1.0)
    assert order == [0, 1, 2, 3, 4]
