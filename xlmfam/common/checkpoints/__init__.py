"""Checkpoints: finding, reading and writing them, one tensor at a time.

The public names are in the modules: `source` (what a reader offers), `files` (open and save a
whole checkpoint), `locate` (folder or hub), `safetensors_files`, `shards`, `atomic`.
"""
