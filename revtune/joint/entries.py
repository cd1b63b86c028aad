"""What this wing makes, entered into the tables of the two others when revtune is imported."""

from __future__ import annotations

from revtune.joint.embeddings import ResponseDroppedEmbedding
from revtune.joint.linear_stream import linear_rewind_loss
from revtune.joint.locked_dropout import ConvertedLockedDropout
from revtune.joint.readouts import ResponseLinearCrossEntropy
from revtune.joint.rev_layers import ResponseRevGRU, ResponseRevLSTM
from revtune.reversible.streams.dropout import LockedDropout
from revtune.reversible.streams.loss import rewind_loss
from revtune.reversible.streams.readout import HEADS
from revtune.tuning.conversion.plan import DROPOUTS
from revtune.tuning.responses.registered import LAYERS
from revtune.tuning.tuner.streamed import STREAMS

LAYERS.update({
    kind.plain: kind
    for kind in (ResponseRevGRU, ResponseRevLSTM, ResponseDroppedEmbedding, ResponseLinearCrossEntropy)
})  # fmt: skip
DROPOUTS[LockedDropout] = ConvertedLockedDropout
HEADS[ResponseLinearCrossEntropy] = ResponseLinearCrossEntropy.forward
STREAMS.update(loss=rewind_loss, linear=linear_rewind_loss)
