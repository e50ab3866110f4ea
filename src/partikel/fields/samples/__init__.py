"""Fields of samples: what compares a cloud of particles with real samples."""
