"""The directory of a memory: opened in a fixed order, switched by generations, copied, repaired."""
