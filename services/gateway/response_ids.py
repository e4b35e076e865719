"""Ids of answers. One that the gateway makes tells the conversation it belongs to, so that feedback goes where its
response is: to the same partition, also from a gateway that has never heard of that response."""

import re
import uuid

NAME = re.compile(r"[A-Za-z0-9_.:\-]{1,128}")
_CARRIES = re.compile(r"chatcmpl-[0-9a-f]{32}\.(.+)")
_LONGEST = 128


def new_response_id(conversation_id: str = "") -> str:
    """`chatcmpl-HEX`, whose conversation is the id itself, or `chatcmpl-HEX.CONVERSATION` where that fits."""
    plain = f"chatcmpl-{uuid.uuid4().hex}"
    carrying = f"{plain}.{conversation_id}"
    return carrying if conversation_id and len(carrying) <= _LONGEST else plain


def carried_conversation(response_id: str) -> str | None:
    """The conversation that an id tells, None where it tells none."""
    found = _CARRIES.fullmatch(response_id)
    return found and found[1]
