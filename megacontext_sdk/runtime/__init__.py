"""What runs a session: the pager over the KV window, the ingest path, the plain loop."""
