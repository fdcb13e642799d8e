"""Log lines before they are sent: cut from output, sampled, with the levels found in them."""
