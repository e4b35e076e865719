"""An object store that answers nothing, as an fsspec file system."""

from typing import Any

import fsspec
from fsspec.spec import AbstractFileSystem


class BrokenFileSystem(AbstractFileSystem):
    protocol = "broken"

    @classmethod
    def url(cls, path: str) -> str:
        fsspec.register_implementation(cls.protocol, cls, clobber=True)
        return f"{cls.protocol}://{path}"

    def _fail(self, *arguments: Any, **named: Any) -> Any:
        raise RuntimeError("no route to 10.0.0.9")

    cat_file = pipe_file = size = _fail
