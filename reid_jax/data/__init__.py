"""Data sets, PK batches, augmentation and the input pipeline."""
