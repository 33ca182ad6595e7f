"""Model classes by the family that a checkpoint is of."""

from __future__ import annotations

from xlmfam.common.auto import (
    CAUSAL_LMS,
    MASKED_LMS,
    MODELS,
    MULTIPLE_CHOICE,
    PRETRAINING,
    QUESTION_ANSWERING,
    SEQ2SEQ_LMS,
    SEQUENCE_CLASSIFIERS,
    TOKEN_CLASSIFIERS,
    AutoClass,
)


class AutoModel(AutoClass):
    """The model without a head."""

    backend = "xlmfam.tf"
    classes = MODELS


class AutoModelForCausalLM(AutoClass):
    """The causal language model."""

    backend = "xlmfam.tf"
    classes = CAUSAL_LMS


class AutoModelForMaskedLM(AutoClass):
    """The masked language model."""

    backend = "xlmfam.tf"
    classes = MASKED_LMS


class AutoModelForPreTraining(AutoClass):
    """The model with the head that it is pretrained with."""

    backend = "xlmfam.tf"
    classes = PRETRAINING


class AutoModelForSequenceClassification(AutoClass):
    """The classifier of texts."""

    backend = "xlmfam.tf"
    classes = SEQUENCE_CLASSIFIERS


class AutoModelForMultipleChoice(AutoClass):
    """The model that chooses among texts."""

    backend = "xlmfam.tf"
    classes = MULTIPLE_CHOICE


class AutoModelForTokenClassification(AutoClass):
    """The classifier of tokens."""

    backend = "xlmfam.tf"
    classes = TOKEN_CLASSIFIERS


class AutoModelForQuestionAnswering(AutoClass):
    """The model that finds answers in a text."""

    backend = "xlmfam.tf"
    classes = QUESTION_ANSWERING


class AutoModelForSeq2SeqLM(AutoClass):
    """The translation model."""

    backend = "xlmfam.tf"
    classes = SEQ2SEQ_LMS


TFAutoModel = AutoModel
TFAutoModelForCausalLM = AutoModelForCausalLM
TFAutoModelForMaskedLM = AutoModelForMaskedLM
TFAutoModelForPreTraining = AutoModelForPreTraining
TFAutoModelForSequenceClassification = AutoModelForSequenceClassification
TFAutoModelForMultipleChoice = AutoModelForMultipleChoice
TFAutoModelForTokenClassification = AutoModelForTokenClassification
TFAutoModelForQuestionAnswering = AutoModelForQuestionAnswering
TFAutoModelForSeq2SeqLM = AutoModelForSeq2SeqLM
