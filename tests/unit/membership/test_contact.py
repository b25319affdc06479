from agent.foundation.machine import NEVER
from agent.membership.contact import Contact
from agent.membership.settings import Settings

SETTINGS = Settings.lan()


def test_a_site_that_knows_nobody_is_not_isolated() -> None:
    contact = Contact(SETTINGS, 0.0)
    assert contact.wake_at == NEVER
    assert not contact.became_isolated(100.0)


def test_silence_makes_it_ask_and_then_say_isolated_once() -> None:
    contact = Contact(SETTINGS, 0.0)
    contact.expect(10.0, somebody=True)
    assert not contact.must_ask(11.9)
    assert contact.must_ask(12.0)
    assert not contact.must_ask(12.5)
    assert contact.must_ask(13.0)
    assert not contact.became_isolated(13.9)
    assert contact.became_isolated(14.0)
    assert contact.is_isolated
    assert not contact.became_isolated(15.0)


def test_an_answer_ends_the_isolation() -> None:
    contact = Contact(SETTINGS, 0.0)
    contact.expect(0.0, somebody=True)
    assert contact.became_isolated(4.0)
    contact.heard(5.0)
    assert not contact.is_isolated
    assert not contact.is_silent(7.9)
    assert contact.is_silent(8.0)


def test_our_own_stall_is_not_the_silence_of_others() -> None:
    contact = Contact(SETTINGS, 0.0)
    contact.expect(0.0, somebody=True)
    contact.heard(10.0)
    contact.lagged(4.0, 14.5)
    assert not contact.became_isolated(14.5)
    assert not contact.must_ask(14.5)
    assert contact.became_isolated(18.1)
