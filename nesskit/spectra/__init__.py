"""Mathematics only: moments of layer inputs, their spectra, what filters free of them, and projections."""
