"""Framework-free core: configs, tokenizers, parameter tables, checkpoints, generation options."""
