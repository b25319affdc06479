from agent.foundation.errors import UsageError
from agent.foundation.ids import JobId
from agent.training.contract import (
    FROM_TRAINER,
    TO_TRAINER,
    Attempted,
    AttemptFailed,
    Prepare,
    Train,
    UpdatesRejected,
)
from agent.wire.documents import Job


def test_messages_arrive_as_they_were_sent() -> None:
    job = Job(
        JobId("digits-00000001"),
        recipe="mnist-2nn",
        dataset="mnist",
        committee=(),
        rounds=3,
        epochs=1,
        batch=32,
        learning_rate=0.1,
        seed=7,
        sites_min=2,
        round_timeout_s=60.0,
        publish="",
        residency=("DE",),
    )
    for message in (Prepare(job), Train(3, 2**63 - 1, "update-3.safetensors")):
        assert TO_TRAINER.unpack(TO_TRAINER.pack(message)) == message
    reply = Attempted(12_000, (("accuracy", 0.5), ("holdout", 100.0)))
    assert FROM_TRAINER.unpack(FROM_TRAINER.pack(reply)) == reply


def test_a_rejection_names_the_updates_and_is_a_failed_attempt() -> None:
    error = UpdatesRejected(((2, "tensor 'w' is not finite"), (5, "tensor 'w' is missing")))
    assert isinstance(error, AttemptFailed)
    assert isinstance(error, UsageError)
    assert error.rejected[1] == (5, "tensor 'w' is missing")
    assert "2 updates" in str(error)
    assert "update 2: tensor 'w' is not finite" in str(error)
