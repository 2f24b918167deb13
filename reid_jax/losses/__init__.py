"""Losses as pure functions of arrays, for one device or for the device's part of a global batch.

Every loss takes `mask` bool[B] (False: a padding row, which changes nothing) and, where the value
depends on the batch as a whole, `axis_name`, the named device axis of pmap or
shard_map(check_vma=False). With it the local value is scaled so that the mean over devices, of the
value and of its gradients, is that of the global batch even if devices hold unequal numbers of
counted rows.
"""

from reid_jax.losses.adversarial import omega
from reid_jax.losses.disentangle import cosine_hinge, intra_class
from reid_jax.losses.distill import js, kl, soft_cross_entropy
from reid_jax.losses.identity import cross_entropy
from reid_jax.losses.mutual_info import club_exact, club_nll, club_sampled, r2
from reid_jax.losses.triplet import batch_hard, pairwise, softmax_soft

__all__ = ["batch_hard", "club_exact", "club_nll", "club_sampled", "cosine_hinge", "cross_entropy"]
__all__ += ["intra_class", "js", "kl", "omega", "pairwise", "r2", "soft_cross_entropy", "softmax_soft"]
