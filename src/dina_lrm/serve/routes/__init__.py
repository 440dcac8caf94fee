"""Routes, one file a subject; each gives a router that is closed over what it needs."""
