"""Access to MLflow over HTTP."""
