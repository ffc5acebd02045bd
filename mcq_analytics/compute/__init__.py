"""One attempt over a window: what it reads, how it locks, stages and merges."""
