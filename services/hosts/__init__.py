"""Where the model programs run: inside Triton, or on threads of this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from services.hosts.interface import MODELS, HostError, ModelHost

if TYPE_CHECKING:
    from anyloop.config import Settings


def open_host(settings: Settings, models: Sequence[str]) -> ModelHost:
    """The host that `settings.host` names, for `models`. In process it loads them now; Triton has them already.

    Open it inside a running event loop. Close it when done.
    """
    unknown = sorted(set(models) - set(MODELS))
    if unknown:
        raise ValueError(f"no such model: {', '.join(unknown)}; the models are {', '.join(MODELS)}")
    if settings.host == "inprocess":
        from services.hosts.inprocess_host import InprocessHost

        return InprocessHost.from_settings(settings, models)
    from services.hosts.triton_host import TritonHost

    return TritonHost(settings.triton_url, models)


__all__ = ["MODELS", "HostError", "ModelHost", "open_host"]
