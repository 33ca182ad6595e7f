"""Generation."""


class GenerationMixin:
    """Gives ``generate`` to a causal model."""
