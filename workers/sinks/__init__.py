"""The stores besides Postgres. A sink never knows another sink."""
