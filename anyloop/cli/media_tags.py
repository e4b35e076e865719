"""Media in a page that needs nothing else: files as `data:` URLs in the tags that show them."""

import base64
from collections.abc import Iterable
from html import escape

from anyloop.cli.demo.asking import File
from anyloop.modality import Modality


def media_tags(files: Iterable[File]) -> str:
    return "".join(map(media_tag, files))


def media_tag(file: File) -> str:
    """A picture, or a player. The MIME type is somebody's word, so it is escaped."""
    url = escape(f"data:{file.mime_type};base64,{base64.b64encode(file.data).decode()}", quote=True)
    if file.modality is Modality.IMAGE:
        return f'<img src="{url}" alt="picture" width="200" height="200">'
    if file.modality is Modality.AUDIO:
        return f'<audio controls preload="metadata" src="{url}"></audio>'
    return f'<video controls loop muted autoplay playsinline width="200" height="200" src="{url}"></video>'
