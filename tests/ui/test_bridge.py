from __future__ import annotations

import threading

from napari.utils.notifications import notification_manager
from pytestqt.qtbot import QtBot

from segdesk.core.errors import InputError
from segdesk.core.run import RunState
from segdesk.jobs.messages import AnyEvent, Finished, PartsPredicted, Progressed, Stepped
from segdesk.ui.bridge import Bridge, Steps, coalesce, reporting


def progress(job: str, done: int) -> Progressed:
    return Progressed(job=job, done=done, total=9)


def step(job: str, number: int) -> Stepped:
    return Stepped(job=job, step=number, total=9, loss=1, learning_rate=1, seconds_left=1)


def test_of_progress_only_the_last_of_each_job_is_left() -> None:
    items = [progress("a", 1), progress("b", 1), progress("a", 2), progress("b", 5)]
    assert coalesce(items) == [progress("a", 2), progress("b", 5)]


def test_all_steps_are_kept_and_handed_over_together() -> None:
    assert coalesce([step("r", 1), step("r", 2), step("r", 3)]) == [
        Steps("r", (step("r", 1), step("r", 2), step("r", 3)))
    ]


def test_progress_never_comes_after_the_end_that_followed_it() -> None:
    end = Finished(job="a", state=RunState.COMPLETED)
    assert coalesce([progress("a", 1), end, progress("b", 1)]) == [
        progress("a", 1),
        end,
        progress("b", 1),
    ]


def test_events_of_a_thread_are_handled_on_the_main_thread_in_order(qtbot: QtBot) -> None:
    seen: list[tuple[AnyEvent, threading.Thread]] = []
    bridge = Bridge(lambda event: seen.append((event, threading.current_thread())))
    events = [Finished(job=str(n), state=RunState.COMPLETED) for n in range(50)]
    thread = threading.Thread(target=lambda: [bridge.put(event) for event in events])
    thread.start()
    thread.join()
    qtbot.waitUntil(lambda: len(seen) == 50)
    bridge.close()
    assert [event for event, _ in seen] == events
    assert {thread for _, thread in seen} == {threading.main_thread()}


def test_what_is_only_drawn_waits_for_a_stroke_and_nothing_else_does(qtbot: QtBot) -> None:
    seen: list[AnyEvent] = []
    is_painting = [True]
    bridge = Bridge(seen.append, is_painting=lambda: is_painting[0])
    parts = [PartsPredicted(job="a", sample="s", z=z, parts=()) for z in range(3)]
    bridge.put(parts[0])
    bridge.put(progress("a", 1))
    called: list[int] = []
    bridge.call(lambda: called.append(1))
    qtbot.waitUntil(lambda: called == [1])
    qtbot.wait(200)
    assert seen == []
    bridge.put(parts[1])
    is_painting[0] = False
    qtbot.waitUntil(lambda: len(seen) == 3)
    assert seen == [parts[0], progress("a", 1), parts[1]]
    is_painting[0] = True
    end = Finished(job="a", state=RunState.COMPLETED)
    bridge.put(parts[2])
    bridge.put(end)
    qtbot.waitUntil(lambda: len(seen) == 5)
    bridge.close()
    assert seen[3:] == [parts[2], end]


def test_steps_come_as_one_batch_and_the_last_reaches_the_session(qtbot: QtBot) -> None:
    seen: list[AnyEvent] = []
    batches: list[Steps] = []
    bridge = Bridge(seen.append)
    bridge.stepped.connect(batches.append)
    for number in range(1, 8):
        bridge.put(step("r", number))
    qtbot.waitUntil(lambda: bool(seen))
    bridge.close()
    assert [len(batch.steps) for batch in batches] == [7]
    assert seen == [step("r", 7)]


def test_a_failing_callback_is_told_and_the_next_event_is_handled(qtbot: QtBot) -> None:
    seen: list[AnyEvent] = []

    def handle(event: AnyEvent) -> None:
        if not seen:
            seen.append(event)
            raise ZeroDivisionError("a bug")
        seen.append(event)

    before = len(notification_manager.records)
    bridge = Bridge(handle)
    bridge.put(progress("a", 1))
    bridge.put(progress("b", 1))
    qtbot.waitUntil(lambda: len(seen) == 2)
    bridge.close()
    assert [str(r.message) for r in notification_manager.records[before:]] == ["a bug"]


def test_a_user_error_becomes_a_notification_with_its_actions(qtbot: QtBot) -> None:
    done = []
    before = len(notification_manager.records)
    with reporting():
        raise InputError("The disk is full.", [("Free some", lambda: done.append(1))])
    (record,) = notification_manager.records[before:]
    assert record.message == "The disk is full."
    record.actions[0][1]()
    assert done == [1]
