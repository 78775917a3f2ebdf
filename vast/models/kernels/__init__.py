"""Implementations of the Affine-Shift operator behind `vast.models.affine_shift.affine_shift`, one file each."""
