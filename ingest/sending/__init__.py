"""The way of a message from the call to the acknowledgement: buffer, batches, outbox, sender."""
