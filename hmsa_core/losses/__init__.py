"""Losses: region mutual information, cross-entropies, soft Jaccard, and the weighted training loss.

Another loss is one file here. `hmsa_core/losses/NAME.py` holds a function

    def loss(logits: Tensor, labels: Tensor, options: LossConfig, ignore_index: int) -> LossParts

and `loss.main` and `loss.aux` in `params.yaml` take NAME. `hmsa_core.config` lists the files without importing them;
a file whose name begins with an underscore is no loss. Settings of a loss are fields of `LossConfig`. A loss of softmax
probabilities sets `SOFTMAX = True`: class heads then start at the usual spread, not at the small spread for sigmoids.
"""

from hmsa_core.losses._pixels import LossParts
from hmsa_core.losses._training import is_softmax, training_loss
from hmsa_core.losses.cross_entropy import cross_entropy
from hmsa_core.losses.jaccard import jaccard
from hmsa_core.losses.released_bce import released_bce
from hmsa_core.losses.rmi import rmi_loss

__all__ = ["LossParts", "cross_entropy", "is_softmax", "jaccard", "released_bce", "rmi_loss", "training_loss"]
