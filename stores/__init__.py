"""Reads from Postgres, Loki, MLflow and S3, shared by workers, gateway and commands."""
