"""Operations: deletion, retention of rows, reconciliation, Flower and the exporter."""
