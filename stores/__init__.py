"""The stores beside Postgres as all sides use them: how to reach them and what they answer."""
