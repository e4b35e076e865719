"""Which rounds are run: shares and kinds of hostile critiques, with and without the robust mode, over seeds."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

KINDS: tuple[Literal["scattered", "ring"], ...] = ("scattered", "ring")
SUSPICION = 0.1  # the share that is stated where nobody lies: what the robust mode costs then


@dataclass(frozen=True)
class Cell:
    """One round. `share` of the statements are lies, the robust mode is told `stated`; 0 is without it."""

    seed: int
    kind: Literal["base", "scattered", "ring"]
    share: float
    stated: float

    @property
    def name(self) -> str:
        if self.kind == "base":
            return f"seed {self.seed}, base"
        robust = f"robust, {100 * self.stated:.0f} % stated" if self.stated else "believing"
        return f"seed {self.seed}, {100 * self.share:.0f} % {self.kind}, {robust}"

    def described(self) -> dict[str, Any]:
        return asdict(self)

    def rng(self) -> np.random.Generator:
        """Who speaks does not depend on whether anybody listens."""
        return np.random.default_rng([self.seed, round(100 * self.share), ["base", *KINDS].index(self.kind)])


@dataclass(frozen=True)
class Plan:
    seeds: int = 3
    prompts: int = 400
    per_subtask: int = 60
    shares: tuple[float, ...] = (0.1, 0.3)
    settings: tuple[str, ...] = ()

    @classmethod
    def quick(cls) -> "Plan":
        return cls(seeds=1, prompts=240, per_subtask=40, shares=(0.3,))

    def but(self, **given: Any) -> "Plan":
        """With what was given."""
        return replace(self, **{name: tuple(v) if isinstance(v, list) else v for name, v in given.items() if v})

    def overrides(self) -> dict[str, str]:
        return dict(one.split("=", 1) for one in self.settings)  # type: ignore[misc]

    def described(self) -> dict[str, Any]:
        return asdict(self) | {"shares": list(self.shares), "settings": list(self.settings)}


def cells(plan: Plan) -> list[Cell]:
    """In the order in which they run: what is told first is whole first."""
    found = []
    for seed in range(plan.seeds):
        found += [Cell(seed, "base", 0.0, 0.0)]
        found += [Cell(seed, "scattered", 0.0, stated) for stated in (0.0, SUSPICION)]
        found += [Cell(seed, kind, share, stated) for share in plan.shares for kind in KINDS for stated in (0.0, share)]
    return found
