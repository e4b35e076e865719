"""Imported feedback is feedback: the trainer joins it and makes critiques and pairs of it."""

from collections import Counter
from pathlib import Path

from anyloop.config import TINY_OMNI
from anyloop.log import FEEDBACK, RESPONSES, EventLog
from anyloop.log.join import join
from anyloop.sequence import Codes, Segment, Sequencer
from protos.anyloop.v1 import types_pb2
from tests.datasets.conftest import RunImport
from tests.datasets.samples import write_all
from trainer.config import TrainerSettings
from trainer.examples import form_examples
from trainer.intake import fault_of


def words(part: types_pb2.ContentPart) -> Segment:
    assert part.WhichOneof("part") == "text"
    return str(part.text)


def test_the_eight_subtasks_make_critiques_and_pairs_in_every_modality(
    tmp_path: Path, run_import: RunImport, log: EventLog
) -> None:
    run_import(write_all(tmp_path / "data"), model_dir=TINY_OMNI)
    feedback = [record.event.unwrap() for record in log.read(FEEDBACK)]
    responses = [record.event.unwrap() for record in log.read(RESPONSES)]
    assert [fault_of(one) for one in (*feedback, *responses)] == [""] * 32  # type: ignore[arg-type]
    joined, waiting = join(feedback, responses)  # type: ignore[arg-type]
    assert (len(joined), waiting) == (16, [])
    sequencer = Sequencer.from_pretrained(TINY_OMNI)
    found = form_examples(joined, sequencer, TrainerSettings(), words, ["policy-000000"])
    assert not found.left_out
    assert Counter(pair.origin for pair in found.pairs)["preference"] == 8
    assert {pair.weight for pair in found.pairs} == {1.0}

    def media(tokens: tuple[int, ...]) -> str:
        return "+".join(one.modality if isinstance(one, Codes) else "text" for one in sequencer.parse(tokens))

    answers = Counter(media(pair.chosen) for pair in found.pairs if pair.origin == "preference")
    assert answers == {"text": 4, "text+image": 1, "image": 1, "audio": 1, "video": 1}
    said = {str(sequencer.parse(one.sequence.answer)[0]) for one in found.critiques}
    assert {"Too low.", "The colour is wrong."} <= said
