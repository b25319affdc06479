"""Where a request may go, where it should go, and why: filtered first, scored second."""
