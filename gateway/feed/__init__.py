"""What happens, as it happens: from the notifier and Postgres to every browser, each row once and in order."""
