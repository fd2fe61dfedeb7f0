"""Does md-kstep pay for a molecule: what is measured, how long plain MD and the sampler take, and the verdict."""
