"""Who is measured: one small file each, the same operations written as each client's own users would."""
