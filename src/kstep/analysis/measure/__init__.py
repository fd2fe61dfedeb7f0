"""What a trajectory holds: profile, geometry, statistics, samples, spectra."""
