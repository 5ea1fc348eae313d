"""What leaves a memory and comes into one: bundles, transcripts, other memories."""
