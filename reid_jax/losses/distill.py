"""Distillation from a teacher's logits; the teacher never receives gradient."""

import jax
import optax
from jax import lax

from reid_jax.losses import batch


def kl(teacher_logits, student_logits, mask=None, axis_name=None):
    """Mean over the batch of KL(softmax(teacher) || softmax(student)), logits [B,K] (EFL eq. 3)."""
    teacher, student = _wide(teacher_logits, student_logits)
    teacher, student = jax.nn.log_softmax(teacher), jax.nn.log_softmax(student)
    values = optax.losses.kl_divergence_with_log_targets(student, teacher)
    return batch.mean(values, mask, axis_name)


def soft_cross_entropy(teacher_logits, student_logits, mask=None, axis_name=None):
    """Mean of -sum softmax(teacher) log_softmax(student): MMT's form, `kl` plus the teacher's entropy."""
    teacher, student = _wide(teacher_logits, student_logits)
    values = optax.softmax_cross_entropy(student, jax.nn.softmax(teacher))
    return batch.mean(values, mask, axis_name)


def _wide(teacher_logits, student_logits):
    return lax.stop_gradient(batch.wide(teacher_logits)), batch.wide(student_logits)
