"""The ``xlmfam`` command."""
