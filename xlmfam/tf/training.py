"""How a model behaves in Keras's ``fit``, ``evaluate`` and ``predict``."""

from __future__ import annotations

import inspect
from typing import Any

import keras
import tensorflow as tf

from xlmfam.common.errors import XlmfamError
from xlmfam.common.outputs import ModelOutput
from xlmfam.tf.attention import Tensor


class TrainingMixin:
    """Joins the documented call to Keras's trainer; stands before ``keras.Model``.

    ``compile()`` without a loss trains on the model's own: labels come in the dict of inputs or
    as ``y``. ``compile(loss=...)`` and metrics get the logits and ``y``.
    """

    # The arguments that say what is right. Of several, ``y`` is a dict, or a list in this order.
    label_names: tuple[str, ...] = ("labels",)
    input_dimensions = 2  # of input_ids

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model; the first argument may be a dict or a list of the arguments."""
        return super().__call__(**self._arguments(args, kwargs))  # type: ignore[misc]

    def _arguments(self, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return all arguments by name.

        Raises:
            XlmfamError: For names that the call does not have, and for one given twice.
        """
        known = list(inspect.signature(self.call).parameters)  # type: ignore[attr-defined]
        first, *rest = args or (None,)
        if "inputs" in kwargs and "inputs" not in known:
            first = kwargs.pop("inputs")
        named: dict[str, Any] = {}
        if hasattr(first, "keys"):
            named = dict(first)
        elif isinstance(first, list | tuple):
            named = dict(zip(known, first, strict=False))
        elif first is not None:
            named = {known[0]: first}
        named.update(zip(known[1:], rest, strict=False))
        twice = [name for name in kwargs if named.get(name) is not None]
        if twice:
            raise XlmfamError(f"{', '.join(twice)} came twice")
        named.update(kwargs)
        unknown = [name for name in named if name not in known]
        if unknown or len(args) > len(known):
            raise XlmfamError(
                f"{type(self).__name__} takes no {', '.join(unknown) or 'more arguments'}; "
                f"it takes {', '.join(known)}"
            )
        return named

    def own_loss(self, output: Any, labels: Any, weights: Tensor | None) -> Tensor:
        """Return the mean loss, with static shapes; models with a head override this.

        Args:
            output: What the call returned.
            labels: What is right; of several ``label_names`` a dict.
            weights: Of the samples, where given.
        """
        del output, labels, weights
        raise XlmfamError(f"{type(self).__name__} has no loss: give compile(loss=...)")

    @property
    def uses_own_loss(self) -> bool:
        """Whether the model was compiled without a loss."""
        return self._compile_loss is None  # type: ignore[attr-defined]

    def train_step(self, data: Any) -> Any:
        """Take one training step."""
        return super().train_step(self._for_loss(data))  # type: ignore[misc]

    def test_step(self, data: Any) -> Any:
        """Evaluate one batch."""
        return super().test_step(self._for_loss(data))  # type: ignore[misc]

    def predict_step(self, data: Any) -> Any:
        """Return the output for one batch, without labels and caches."""
        x, *_ = self._without_labels(data)
        return self(x, training=False)

    def loss_inputs(self, x: dict[str, Any], y: Any) -> dict[str, Any]:
        """Return the arguments of a call whose loss is taken; models whose call needs ``y`` add it.

        Args:
            x: The arguments without labels.
            y: The labels.
        """
        del y
        return x

    def _for_loss(self, data: Any) -> tuple[Any, Any, Any]:
        x, y, weights = self._without_labels(data)
        return self.loss_inputs(x, y), y, weights

    def _without_labels(self, data: Any) -> tuple[Any, Any, Any]:
        """Move labels out of the inputs, which makes shapes static, and ask for no cache."""
        x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
        x = self._arguments((x,), {})
        found = {name: x.pop(name, None) for name in self.label_names}
        x.update(self._no_cache())
        return x, self._labels(y, found), weights

    def _labels(self, y: Any, found: dict[str, Any]) -> Any:
        """Return ``y``, or what was found among the inputs: one value, or a dict of several."""
        if y is None:
            y = {name: value for name, value in found.items() if value is not None} or None
        if len(found) > 1:
            return dict(zip(found, y, strict=False)) if isinstance(y, list | tuple) else y
        if isinstance(y, dict):
            (name,) = found
            return y.get(name, next(iter(y.values())) if len(y) == 1 else y)
        return y

    def _no_cache(self) -> dict[str, Any]:
        """Return the argument that asks for no cache, where the call has one."""
        takes = inspect.signature(self.call).parameters  # type: ignore[attr-defined]
        return {"use_cache": False} if "use_cache" in takes else {}

    def scored(self, output: Any) -> Any:
        """Return what the loss and the metrics of ``compile`` look at."""
        return main_output(output)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """Return the loss of a batch: the model's own, or that of ``compile``."""
        if not self.uses_own_loss:
            scored = self.scored(y_pred)
            return super().compute_loss(x, y, scored, sample_weight, training)  # type: ignore[misc]
        if y is None:
            raise XlmfamError(
                f"give {' and '.join(self.label_names[:2])}, in the inputs or as y: the loss "
                "needs them"
            )
        loss = self.own_loss(y_pred, y, sample_weight)
        for more in self.losses:  # type: ignore[attr-defined]
            loss = loss + tf.cast(more, loss.dtype)
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        return loss if replicas == 1 else loss / replicas

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Update the metrics of ``compile`` with logits and labels."""
        return super().compute_metrics(x, y, self.scored(y_pred), sample_weight)  # type: ignore[misc]

    def export(self, filepath: str, format: str = "tf_saved_model", **kwargs: Any) -> None:
        """Write a SavedModel (or another format of Keras's) that serves the model.

        Args:
            filepath: Where.
            format: As in ``keras.Model.export``.
            **kwargs: As there; ``input_signature`` is by default a dict of ``input_ids`` and
                ``attention_mask``, of any batch and length.
        """
        if format == "tf_saved_model":
            self._export_serving(str(filepath), kwargs.get("input_signature"))
            return
        super().export(filepath, format=format, **kwargs)  # type: ignore[misc]

    def _export_serving(self, filepath: str, signature: Any = None) -> None:
        if signature is None:
            spec = tf.TensorSpec([None] * self.input_dimensions, tf.int32)
            signature = [{"input_ids": spec, "attention_mask": spec}]

        def serve(*inputs):
            output = self(*inputs, training=False, return_dict=True, **self._no_cache())
            return {name: output[name] for name in output if tf.is_tensor(output[name])}

        archive = keras.export.ExportArchive()
        archive.track(self)
        archive.add_endpoint("serve", serve, signature)
        archive.write_out(filepath, verbose=False)


def main_output(y_pred: Any) -> Any:
    """Return the logits of an output, or its first field."""
    if isinstance(y_pred, ModelOutput):
        return y_pred.get("logits", y_pred[0])
    return y_pred[0] if isinstance(y_pred, tuple | list) else y_pred
