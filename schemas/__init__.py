"""The contract: what trainers say, where it travels, and the tables it ends in. Imports nothing of ours."""
