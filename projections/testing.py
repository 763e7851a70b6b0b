"""A test kit for projections, ours and yours: given these events, expect these views.

    given(created("A-1", project="web")).when(appended("A-1", {"role": "user"})).expect(
        SessionIndex(), {"A-1": {"project": "web", "message_count": 1}}
    )

`expect` folds the events as they stand, one by one, by twos and threes, each batch beginning from
the rows that the one before left, and everything twice: views must not depend on any of it. All of
it runs in one process and at one time: a clock read to the day, or the order of a set of texts, it
cannot see.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from session_projector.projections import fold as folding
from session_projector.projections.event import LogRow, Unfoldable
from session_projector.projections.projection import FAULT, Projection
from session_projector.projections.rows import require_row

T0: Final = 1_700_000_000_000
"""The time of the first event, in milliseconds; each further one is a second later."""

Views = dict[str, tuple[Any, ...]]
Outcome = tuple[Views, dict[int, str], int]


class Given(msgspec.Struct, frozen=True):
    """A log, in the batches that it is folded in."""

    batches: tuple[tuple[dict[str, Any], ...], ...]

    def when(self, *events: dict[str, Any]) -> "Given":
        """The same log with another batch at its end."""
        return Given((*self.batches, events))

    def rows(self) -> list[LogRow]:
        """The log as it would stand in `event_log`."""
        events = [event for batch in self.batches for event in batch]
        return [_row(seq, event) for seq, event in enumerate(events, 1)]

    def expect(
        self,
        projection: Projection,
        views: Mapping[str, Mapping[str, Any]],
        *,
        quarantined: Mapping[int, str] | None = None,
        skipped: int | None = None,
    ) -> None:
        """Raise AssertionError unless the views are these, by key, in the columns that are named.

        A column that holds MessagePack is compared with the value it holds. `quarantined` gives
        words of the reason by position (1 is the first event), and is compared only if given.
        """
        rows = self.rows()
        sizes = [len(batch) for batch in self.batches]
        outcome = _fold(projection, rows, sizes)
        for others in (sizes, [len(rows) or 1], [1], [2, 1], [3]):
            other = _fold(projection, rows, others)
            if other != outcome:
                raise AssertionError(
                    f"folded {'again' if others == sizes else f'in batches of {others}'} the same"
                    f" events give something else, so {projection.name} is not deterministic"
                    " (chance, a clock, a state of its own, a view changed in place?):"
                    f"\n{outcome}\n{other}"
                )
        _compare(projection, outcome, views, quarantined, skipped)


def given(*events: dict[str, Any]) -> Given:
    """A log of these events."""
    return Given((events,))


def event(
    kind: str, key: str, data: Any, *, log_key: str | None = None, **fields: Any
) -> dict[str, Any]:
    """Any event; `key` is its session, and `log_key` its row's key where that is another."""
    made = {"type": kind, "sessionId": key, "data": data, **fields}
    return {"key": f"session:{key}" if log_key is None else log_key, "event": made}


def created(session_id: str, *messages: Any, **data: Any) -> dict[str, Any]:
    """`session_created`; the project is `P` unless `data` says another."""
    return event("session_created", session_id, {"project": "P", "messages": messages, **data})


def appended(session_id: str, *messages: Any) -> dict[str, Any]:
    """`session_append`."""
    return event("session_append", session_id, {"messages": messages})


def updated(session_id: str, **data: Any) -> dict[str, Any]:
    """`session_updated`."""
    return event("session_updated", session_id, data)


def _row(seq: int, made: dict[str, Any]) -> LogRow:
    time = T0 + (seq - 1) * 1000
    data = msgspec.msgpack.encode({"timestamp": time, **made["event"]})
    return LogRow(seq, f"e{seq}", made["key"], data, time)


def _fold(projection: Projection, rows: Sequence[LogRow], sizes: Sequence[int]) -> Outcome:
    standing: Views = {}
    quarantined: dict[int, str] = {}
    skipped = start = turn = 0
    while start < len(rows):
        size = sizes[turn % len(sizes)] or 1
        batch = folding.read(rows[start : start + size], [projection])
        views = {key: projection.from_row(row) for key, row in standing.items()}
        folded = folding.fold(projection, views, batch, _raise)
        again = {key: projection.to_row(view) for key, view in views.items()}
        if again != standing:
            raise AssertionError(
                f"a row of {projection.name} does not come back as it was: fold changed a view in"
                " place, or from_row and to_row disagree"
            )
        rows_made = {key: projection.to_row(view) for key, view in folded.views.items()}
        for key, row in rows_made.items():
            _require_row(projection, key, row)
        faults = [one for one in folded.quarantined if one.reason.startswith(FAULT)]
        assert not faults, f"{projection.name} made a row that cannot be kept: {faults}"
        standing |= rows_made
        quarantined |= {rejected.seq: rejected.reason for rejected in folded.quarantined}
        skipped += folded.skipped
        start, turn = start + size, turn + 1
    return standing, quarantined, skipped


def _raise(_: Projection, __: int, error: BaseException) -> None:
    raise error


def _require_row(projection: Projection, key: str, row: tuple[Any, ...]) -> None:
    try:
        require_row(projection, key, row)
    except Unfoldable as error:
        raise AssertionError(f"{projection.name}: {error}") from None


def _compare(
    projection: Projection,
    outcome: Outcome,
    views: Mapping[str, Mapping[str, Any]],
    quarantined: Mapping[int, str] | None,
    skipped: int | None,
) -> None:
    standing, reasons, count = outcome
    found = {
        key: _named(projection, row, views.get(key, projection.table.columns))
        for key, row in standing.items()
    }
    assert found == views, f"{projection.name} made\n{found}\nand not\n{views}"
    if quarantined is not None:
        assert reasons.keys() == quarantined.keys(), f"quarantined: {reasons}"
        wrong = {
            seq: reasons[seq] for seq, words in quarantined.items() if words not in reasons[seq]
        }
        assert not wrong, f"quarantined for other reasons: {wrong}"
    assert skipped in (None, count), f"skipped {count} events"


def _named(
    projection: Projection, row: tuple[Any, ...], names: Mapping[str, Any]
) -> dict[str, Any]:
    values = dict(zip(projection.table.columns, row, strict=True))
    return {
        name: msgspec.msgpack.decode(values[name])
        if isinstance(values[name], bytes) and not isinstance(names[name], bytes)
        else values[name]
        for name in names
    }
