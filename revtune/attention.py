"""Attention of a decoder to an encoder, also as the readout of a stream."""

from revtune.published import publish
from revtune.reversible.streams.attention import Attention, AttentionReadout, numbered

__all__ = ["Attention", "AttentionReadout", "numbered"]

publish(globals(), __all__)
