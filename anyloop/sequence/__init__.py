"""One token stream for all modalities: text tokens, code ranges, delimiters, prompt templates."""

from anyloop.sequence.grammar import OutputGrammar
from anyloop.sequence.layout import CodeRange, LayoutError, SequenceLayout
from anyloop.sequence.segments import Codes, Segment, Turn
from anyloop.sequence.sequencer import Sequencer
from anyloop.sequence.stream import SegmentStream

__all__ = [
    "CodeRange",
    "Codes",
    "LayoutError",
    "OutputGrammar",
    "Segment",
    "SegmentStream",
    "SequenceLayout",
    "Sequencer",
    "Turn",
]
