"""What the operators want: documents, merged last-writer-wins, and what that asks of one site."""
