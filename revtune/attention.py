"""Attention of a decoder to an encoder, also as the readout of a stream."""

from revtune.reversible.streams.attention import Attention as Attention
from revtune.reversible.streams.attention import AttentionReadout as AttentionReadout
from revtune.reversible.streams.attention import numbered as numbered
