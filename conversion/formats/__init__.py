"""The weight files besides safetensors: pytorch_model.bin, tf_model.h5, flax_model.msgpack."""
