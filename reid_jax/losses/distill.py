"""Distances of a student's predictions from a teacher's logits, which receive no gradient unless asked."""

import jax
import jax.numpy as jnp
import optax
from jax import lax

from reid_jax.losses import batch


def kl(teacher_logits, student_logits, mask=None, axis_name=None, *, detach=True):
    """Mean over the batch of KL(softmax(teacher) || softmax(student)), logits [B,K] (EFL eq. 3).

    detach: False lets the teacher receive gradient.
    """
    teacher, student = _wide(teacher_logits, student_logits, detach)
    teacher, student = jax.nn.log_softmax(teacher), jax.nn.log_softmax(student)
    values = optax.losses.kl_divergence_with_log_targets(student, teacher)
    return batch.mean(values, mask, axis_name)


def soft_cross_entropy(teacher_logits, student_logits, mask=None, axis_name=None):
    """Mean of -sum softmax(teacher) log_softmax(student): MMT's form, `kl` plus the teacher's entropy."""
    teacher, student = _wide(teacher_logits, student_logits)
    values = optax.softmax_cross_entropy(student, jax.nn.softmax(teacher))
    return batch.mean(values, mask, axis_name)


def js(logits, other_logits, mask=None, axis_name=None):
    """Mean of the Jensen-Shannon divergence of the predictions, logits [B,K]; gradient to both.

    [KL(p || m) + KL(q || m)] / 2 with m = (p + q) / 2, at least 1e-7.
    """
    p, q = (jax.nn.log_softmax(batch.wide(x)) for x in (logits, other_logits))
    m = jnp.log(jnp.maximum((jnp.exp(p) + jnp.exp(q)) / 2, 1e-7))
    values = [optax.losses.kl_divergence_with_log_targets(m, x) for x in (p, q)]
    return batch.mean(sum(values) / 2, mask, axis_name)


def _wide(teacher_logits, student_logits, detach=True):
    teacher = batch.wide(teacher_logits)
    return lax.stop_gradient(teacher) if detach else teacher, batch.wide(student_logits)
