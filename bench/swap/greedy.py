"""Whether a whole answer is greedy, by a model's own code and not by the engine's."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from anyloop.sequence import SequenceLayout
from services.policy.engine.answer_masks import MaskTable

TIE = 1e-3  # two tokens whose log-probabilities are closer may change places with the batch they are in


class Greedy:
    """One version of the weights, loaded when it is first asked."""

    def __init__(self, directory: Path, max_tokens: int) -> None:
        """`max_tokens` is where an answer of text ends that does not end by itself."""
        self._directory = directory
        self._max_tokens = max_tokens
        self._layout = SequenceLayout.load(directory)
        self._model: torch.nn.Module | None = None

    def could_answer(self, prompt: list[int], output: list[int]) -> bool:
        """True when every token is within `TIE` of the likeliest that text may go on with, and the end is an end."""
        ended = self._layout.end in output
        length = output.index(self._layout.end) + 1 if ended else self._max_tokens
        return len(output) == length and self._worst(prompt, output) < TIE

    @torch.inference_mode()
    def _worst(self, prompt: list[int], output: list[int]) -> float:
        if self._model is None:
            self._model = AutoModelForCausalLM.from_pretrained(
                self._directory, dtype=torch.float32, local_files_only=True
            ).eval()
        logits = self._model(torch.tensor([prompt + output[:-1]])).logits[0, len(prompt) - 1 :].float()
        table = MaskTable(self._layout, logits.shape[1])
        state = table.answer(["text"], self._max_tokens)
        rows = []
        for at, token in enumerate(output):
            rows.append(state.row(self._max_tokens - at))
            state.advance(token)
        logits += table.rows[rows]
        chosen = logits.gather(1, torch.tensor(output)[:, None])[:, 0]
        return float((logits.amax(1) - chosen).max())
