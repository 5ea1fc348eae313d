"""Focus: the working context, what may change in it, and how a refocus changes it."""
