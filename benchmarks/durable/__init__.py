"""What durable batches cost."""
