"""The stores as all sides read them: how to reach them and what they answer."""
