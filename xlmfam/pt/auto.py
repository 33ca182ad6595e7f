"""Model classes by the family that a checkpoint is of."""

from __future__ import annotations

from xlmfam.common.auto import CAUSAL_LMS, MODELS, AutoClass


class AutoModel(AutoClass):
    """The model without a head."""

    backend = "xlmfam.pt"
    classes = MODELS


class AutoModelForCausalLM(AutoClass):
    """The causal language model."""

    backend = "xlmfam.pt"
    classes = CAUSAL_LMS
