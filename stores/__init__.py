"""Access to Postgres, Loki, MLflow and S3 for workers, gateway and commands."""
