"""Metrics from trainings that were not written for trainwire: from TensorBoard, W&B and printed lines.

The modules of `carrier/` are imported by a training's Python; the other modules run in the launcher.
"""
