"""Collects metrics of training scripts that do not call the SDK: from TensorBoard, W&B, MLflow and printed lines.

The modules of `carrier/` are imported by the Python process of the training; the other modules run in the process
of `trainwire run`.
"""
