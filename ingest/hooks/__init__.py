"""Metrics from trainings that were not written for trainwire: from TensorBoard, W&B and printed lines.

`carrier/` is what a training's Python imports; the other modules run in the launcher.
"""
