"""Losses: region mutual information, cross-entropies and the weighted training loss."""

from hmsa_core.losses.cross_entropy import cross_entropy
from hmsa_core.losses.rmi import RmiParts, released_bce, rmi_loss, rmi_parts
from hmsa_core.losses.total import LossParts, TotalLoss

__all__ = ["LossParts", "RmiParts", "TotalLoss", "cross_entropy", "released_bce", "rmi_loss", "rmi_parts"]
