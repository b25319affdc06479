"""The admin API: what an operator on this machine may see and do, over a Unix socket."""
