"""Model classes by the family that a checkpoint is of."""

from __future__ import annotations

from xlmfam.common.auto import CAUSAL_LMS, MODELS, AutoClass


class AutoModel(AutoClass):
    """The model without a head."""

    backend = "xlmfam.flax"
    classes = MODELS


class AutoModelForCausalLM(AutoClass):
    """The causal language model."""

    backend = "xlmfam.flax"
    classes = CAUSAL_LMS
