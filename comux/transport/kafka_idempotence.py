"""Where kafka-python's idempotent producer does not do what it says when something goes wrong, and is put right.

Idempotence (each record once, in order, across retries) is the default: Kafka numbers the records of each partition.
Four things about kafka-python 3's way of it would break promises of ours:

- A batch that the cluster refuses (too large, not authorised) ends the client, with everything under way to every
  topic (``spare_the_others``).
- After a batch ran out of time during an outage, the client forgets its numbers and never asks for others: nothing is
  sent any more. A request for numbers that ran out of time ends it too (``ask_for_numbers_again``).
- While it waits for numbers, no batch runs out of time (``keep_the_delivery_timeout``).
- Closing gives up, and leaves its thread, where records are still under way when its time is over (``close_producer``).
"""

from __future__ import annotations

import logging
import time
from typing import Any

from kafka import errors as kafka_errors
from kafka.producer.transaction_manager import TransactionState

_log = logging.getLogger("comux.transport")


def spare_the_others(client: Any) -> None:
    """See to it that a record which the cluster refuses fails, and nothing else.

    kafka-python ends an idempotent producer for good then, with all that is under way to any topic. But what was
    refused was not appended, and of each partition one batch is under way: the next one takes over its numbers.
    """
    manager = client._transaction_manager
    if manager is None:
        return
    classify, for_good = manager.classify_batch_error, manager._FATAL_ERRORS

    def classify_refusal(error: Any, batch: Any, log_start_offset: int = -1) -> Any:
        outcome = classify(error, batch, log_start_offset=log_start_offset)
        kind = error if isinstance(error, type) else type(error)
        if outcome != manager.ERROR_CLASS_FATAL or kind in for_good:
            return outcome
        if manager.producer_id_and_epoch.match(batch) and batch.has_sequence:
            manager.set_sequence_number(batch.topic_partition, batch.base_sequence)
        return manager.ERROR_CLASS_RETRIABLE  # it is not tried again; the word only says that nothing else ends

    manager.classify_batch_error = classify_refusal


def ask_for_numbers_again(client: Any) -> None:
    """Let an idempotent client that has lost its numbers begin anew, unless it is not allowed to."""
    manager = client._transaction_manager
    if manager is None:
        return
    reset, end = manager.reset_producer_id, manager.transition_to_fatal_error

    def reset_and_begin() -> None:
        reset()
        with manager._lock:
            manager._current_state = TransactionState.UNINITIALIZED  # else it believes that it has some

    def end_or_begin(error: BaseException) -> None:
        if isinstance(error, (kafka_errors.AuthorizationError, kafka_errors.UnsupportedVersionError)):
            end(error)
        else:
            _log.debug("numbering of records begins anew: %s", error)
            reset_and_begin()

    manager.reset_producer_id, manager.transition_to_fatal_error = reset_and_begin, end_or_begin


def keep_the_delivery_timeout(client: Any) -> None:
    """Let records run out of time also while the client waits for a broker to give it numbers."""
    sender, accumulator = client._sender, client._accumulator

    def expire() -> None:
        """On the sender's thread, each time it looks for a broker."""
        now = time.monotonic()
        for batch in [*accumulator.expired_batches(now=now), *sender._get_expired_inflight_batches(now=now)]:
            error = kafka_errors.KafkaTimeoutError(f"not delivered within {accumulator.delivery_timeout_ms} ms")
            sender._complete_batch_with_exception(batch, error)

    sender._client.before_looking = expire


def close_producer(client: Any, timeout: float, where: str) -> None:
    """Wait ``timeout`` seconds for what is under way, then end; what was not acknowledged by then fails."""
    try:
        client.close(timeout=timeout)
    except Exception as error:  # noqa: BLE001 - whatever the client says at its end must not reach anybody
        _log.debug("%s: closing the producer: %s", where, error)
    sender = client._sender
    if sender.is_alive():
        sender.force_close()
        sender.join(timeout)
