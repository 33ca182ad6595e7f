"""Generation options, the same for the three backends."""

from xlmfam.common.generation.config import (
    GENERATION_CONFIG_NAME,
    GenerationConfig,
    GenerationPlan,
    plan_generation,
)

__all__ = ["GENERATION_CONFIG_NAME", "GenerationConfig", "GenerationPlan", "plan_generation"]
