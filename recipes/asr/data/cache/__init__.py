"""What is found out about recordings once and kept for later runs: their headers, and their decoded samples."""
