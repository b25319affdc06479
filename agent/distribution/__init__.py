"""Content-addressed blobs: manifests of chunks, and which chunk to ask of whom."""
