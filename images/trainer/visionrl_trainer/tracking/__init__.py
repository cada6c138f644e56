"""Trackers of a run: TensorBoard by default, Trackio, Weights & Biases and MLflow where the job names them."""

from visionrl_trainer.tracking.trackers import Trackers

__all__ = ["Trackers"]
