"""The critic against a CritiqueService of the test's own, over a real socket."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from anyloop.evaluation.critic import Critic, CriticError
from anyloop.media.formats import write_image
from anyloop.media.store import MediaStore
from protos.anyloop.v1 import critique_pb2, critique_pb2_grpc, types_pb2
from tests.evaluation.pictures import DOT


@dataclass
class Image:
    data: bytes
    mime_type: str = "image/png"


class FakeService(critique_pb2_grpc.CritiqueServiceServicer):
    """Says `says`, or fails `failures` times with `code` first; keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[critique_pb2.CritiqueRequest] = []
        self.says, self.code, self.failures = "This is correct.", grpc.StatusCode.UNAVAILABLE, 0

    def Critique(
        self, request: critique_pb2.CritiqueRequest, context: grpc.ServicerContext
    ) -> Iterator[critique_pb2.CritiqueResponse]:
        self.asked.append(request)
        if self.failures:
            self.failures -= 1
            context.abort(self.code, "not now")
        if not self.says:
            return
        spans = [types_pb2.VersionSpan(version="critique-000003")]
        finished = critique_pb2.CritiqueResponse.Finished(critique=self.says, version_spans=spans)
        yield critique_pb2.CritiqueResponse(text=critique_pb2.CritiqueResponse.TextDelta(text=self.says))
        yield critique_pb2.CritiqueResponse(finished=finished)


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def media(tmp_path: Path) -> MediaStore:
    return MediaStore(f"file://{tmp_path}/media")


@pytest.fixture
def critic(service: FakeService, media: MediaStore) -> Iterator[Critic]:
    server = grpc.server(ThreadPoolExecutor(2))
    critique_pb2_grpc.add_CritiqueServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with Critic(f"127.0.0.1:{port}", media, attempts=2) as made:
        yield made
    server.stop(0).wait()


def test_the_conversation_and_the_answer_go_with_media_by_reference(
    critic: Critic, service: FakeService, media: MediaStore
) -> None:
    picture = Image(write_image(DOT))
    found = critic.judge([("system", ("Be kind.",)), ("user", (picture, "What is it?"))], ("A dot.",))
    assert (found.right, found.critique, found.version) == (True, "This is correct.", "critique-000003")
    (request,) = service.asked
    assert [message.role for message in request.messages] == [types_pb2.ROLE_SYSTEM, types_pb2.ROLE_USER]
    reference = request.messages[1].parts[0].media
    assert media.get(reference.sha256) == picture.data
    assert reference.modality == types_pb2.MODALITY_IMAGE
    assert request.response.parts[0].text == "A dot."
    assert request.sampling.temperature == 0.0
    assert not request.response_id, "an evaluation leaves no critique in the log"


def test_what_is_not_approved_is_not_right(critic: Critic, service: FakeService) -> None:
    service.says = "It says a dot: dot no. It should be blue."
    assert not critic.judge([("user", ("Draw.",))], ("A dot.",)).right


def test_two_parts_agree_when_one_is_a_right_answer_to_the_other(critic: Critic, service: FakeService) -> None:
    picture = Image(write_image(DOT))
    assert critic.agree(("A dot.",), (picture,))
    assert service.asked[0].messages[0].parts[0].text == "A dot."
    assert service.asked[0].response.parts[0].HasField("media")


def test_a_service_that_comes_back_is_asked_again(critic: Critic, service: FakeService) -> None:
    service.failures = 1
    assert critic.judge([("user", ("Draw.",))], ("A dot.",)).right
    assert len(service.asked) == 2


def test_a_service_that_stays_away_is_told_apart_from_one_that_refuses(critic: Critic, service: FakeService) -> None:
    service.failures = 2
    with pytest.raises(CriticError, match="UNAVAILABLE: not now") as away:
        critic.judge([("user", ("Draw.",))], ("A dot.",))
    assert away.value.away
    service.failures, service.code = 1, grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(CriticError, match="INVALID_ARGUMENT") as refused:
        critic.judge([("user", ("Draw.",))], ("A dot.",))
    assert not refused.value.away
    assert len(service.asked) == 3, "what is refused is not asked again"


def test_an_answer_without_an_end_is_an_error(critic: Critic, service: FakeService) -> None:
    service.says = ""
    with pytest.raises(CriticError, match="ended its answer early"):
        critic.judge([("user", ("Draw.",))], ("A dot.",))
