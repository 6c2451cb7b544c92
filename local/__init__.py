"""One machine: Prism's life, the sample shop, and the run that ties them together."""
