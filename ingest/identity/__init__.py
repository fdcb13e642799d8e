"""Job numbers and names that trainwire chooses, and the variables by which child processes find them."""
