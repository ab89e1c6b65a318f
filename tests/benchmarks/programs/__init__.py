"""Small programs that are measured, or that make the load: each runs in a process of its own."""
