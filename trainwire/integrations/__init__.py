"""One file per tool that trainers use; an import of one never imports another (docs/integrations.md)."""
