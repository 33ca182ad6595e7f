"""Backend-agnostic model configs."""

from xlmfam.common.configs.auto import AutoConfig, config_class
from xlmfam.common.configs.base import PretrainedConfig
from xlmfam.common.configs.xglm import XGLMConfig
from xlmfam.common.configs.xlm import XLMConfig

__all__ = ["AutoConfig", "PretrainedConfig", "XGLMConfig", "XLMConfig", "config_class"]
