"""Operations on stored data: deletion, retention, dead letters, reconciliation; and metrics and Flower."""
