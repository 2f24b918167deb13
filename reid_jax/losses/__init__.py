"""Losses as pure functions of arrays, for one device or for the device's part of a global batch.

Every loss takes `mask` bool[B] (False: a padding row, which changes nothing) and, where the value
depends on the batch as a whole, `axis_name`, the named device axis of pmap or
shard_map(check_vma=False). With it the local value is scaled so that the mean over devices, of the
value and of its gradients, is that of the global batch even if devices hold unequal numbers of
counted rows.
"""
