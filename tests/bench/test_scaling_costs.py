"""What `bench.scaling` puts into the log is what the figures say it is."""

from anyloop.log.events import Event
from bench.scaling.consumers import feedback, response
from trainer.intake import fault_of
from trainer.join import join


def test_the_events_are_two_kilobytes_and_feedback_joins() -> None:
    answers: list[Event] = [response(number) for number in range(8)]
    assert all(2000 < len(event.data) < 2150 for event in answers)
    said = feedback(4).unwrap()
    known = [event.unwrap() for event in answers]
    assert not any(fault_of(one) for one in [said, *known])
    joined, waiting = join([said], known)
    assert [one.response.response_id for one in joined] == ["r4"]
    assert waiting == []
    assert feedback(4).key == response(4).key
