"""The training: its loop, its step, the state and how it begins, goes on and is evaluated."""
