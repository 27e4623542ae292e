"""The database of batches: its tables, and every read and write of them."""
