"""Callbacks: what a run shows of its layers, how noisy its gradients are, and a global batch that grows."""

from lightning_novograd.training.callbacks.batch_ramp import BatchRampScheduler
from lightning_novograd.training.callbacks.layer_monitor import LayerMonitor
from lightning_novograd.training.callbacks.noise_scale import GradientNoiseScale
from lightning_novograd.training.callbacks.pictures import METRICS, draw_layers

__all__ = ["METRICS", "BatchRampScheduler", "GradientNoiseScale", "LayerMonitor", "draw_layers"]
