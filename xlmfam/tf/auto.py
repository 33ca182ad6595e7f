"""Model classes by the family that a checkpoint is of."""

from __future__ import annotations

from xlmfam.common.auto import CAUSAL_LMS, MODELS, AutoClass


class AutoModel(AutoClass):
    """The model without a head."""

    backend = "xlmfam.tf"
    classes = MODELS


class AutoModelForCausalLM(AutoClass):
    """The causal language model."""

    backend = "xlmfam.tf"
    classes = CAUSAL_LMS


TFAutoModel = AutoModel
TFAutoModelForCausalLM = AutoModelForCausalLM
